"""Mixtures of experts, unfolded: every expert's projections are linears that can be hooked, compressed and named.

transformers keeps all experts of a block in two 3-D parameters; checkpoints keep a matrix for each projection of each
expert. Here a block has what checkpoints have, and computes the same.
Shapes: T tokens, K experts of a token, H hidden size, E tokens of one expert.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.contracts.job import Calibration
from paredown.contracts.report import LayerReport


@dataclass(frozen=True)
class ExpertNames:
    """Where a family keeps its experts, and what checkpoints call an expert's projections."""

    module: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def groups(self, num_experts: int) -> tuple[tuple[str, ...], ...]:
        """The experts' linears in order of execution; gate and up read the same input."""
        prefixes = [f"{self.module}.{expert}" for expert in range(num_experts)]
        return tuple(
            group
            for prefix in prefixes
            for group in ((f"{prefix}.{self.gate}", f"{prefix}.{self.up}"), (f"{prefix}.{self.down}",))
        )


class _Expert(nn.Module):
    """One expert on the meta device."""

    def __init__(
        self, names: ExpertNames, hidden: int, inner: int, dtype: torch.dtype, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._names = names
        self._act = act
        for name, in_features, out_features in (
            (names.gate, hidden, inner),
            (names.up, hidden, inner),
            (names.down, inner, hidden),
        ):
            self.add_module(name, nn.Linear(in_features, out_features, bias=False, device="meta", dtype=dtype))

    def forward(self, states_EH: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in (self._names.gate, self._names.up, self._names.down))
        result_EH: Tensor = down(self._act(gate(states_EH)) * up(states_EH))
        return result_EH


class UnfoldedExperts(nn.ModuleList):
    """The experts of one block, in place of transformers' module; called as that one is."""

    def __init__(self, folded: Any, names: ExpertNames) -> None:
        num_experts, hidden, inner = folded.down_proj.shape
        dtype = folded.down_proj.dtype
        # The function, not the module, of which every expert would hold one.
        super().__init__(_Expert(names, hidden, inner, dtype, folded.act_fn.forward) for _ in range(num_experts))

    def forward(self, hidden_TH: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Experts run one after the other, each on the tokens that the router sent it; without any it does not run."""
        output_TH = torch.zeros_like(hidden_TH)
        for index, expert in enumerate(self):
            tokens_E, places_E = torch.where(experts_TK == index)
            if len(tokens_E) > 0:
                result_EH = expert(hidden_TH[tokens_E]) * weights_TK[tokens_E, places_E, None]
                output_TH.index_add_(0, tokens_E, result_EH.to(output_TH.dtype))
        return output_TH


# What was done to an expert's linear that too few tokens reached.
_HANDLED = {
    "uniform": "were compressed as if all their input channels were equally active",
    "dense": "were left as they are by the stages that look at activations",
}


def coverage_warnings(layers: Sequence[LayerReport], calibration: Calibration) -> tuple[str, ...]:
    """A sentence where calibration reached some experts hardly or not at all."""
    reached: dict[str, int] = {}
    for layer in layers:
        if layer.tokens is not None:
            expert = layer.name.rpartition(".")[0]
            reached[expert] = min(layer.tokens, reached.get(expert, layer.tokens))
    few = [expert for expert, tokens in reached.items() if tokens < calibration.min_expert_tokens]
    if not few:
        return ()
    none = sum(reached[expert] == 0 for expert in few)
    return (
        f"{len(few)} of {len(reached)} experts, such as {few[0]}, saw fewer than {calibration.min_expert_tokens} "
        f"calibration tokens ({none} saw none). They {_HANDLED[calibration.unreached_experts]}; calibrate on more or "
        "more varied text to reach them.",
    )
