"""Narrower blocks: gradients against a whole backward pass, the view against a model whose channels are silent."""

from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, Compressor, shard_bytes
from tests.engine.test_depth import deep_model, measured
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from paredown.contracts.job import Format
from paredown.contracts.recipes import Bonsai, Gptq, LlmPruner, ShortGpt, Stage, Wanda, Width
from paredown.engine.errors import Drained, NanFound, RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import WRITERS
from paredown.engine.methods import llm_pruner
from paredown.engine.weights import open_model

pytestmark = pytest.mark.usefixtures("small_batches")
# The tiny llama: 3 blocks of 128 channels, 2 key-value heads and 4 query heads of 16.
CUT = LlmPruner(mlp_share=0.5, head_groups=1)


def reference(model: PreTrainedModel, tokens_NT: Tensor) -> list[dict[str, Tensor]]:
    """Σ |w · ∂L/∂w| of each block's channels and head groups, from one backward pass of the whole model."""
    model.zero_grad()
    model(input_ids=tokens_NT, labels=tokens_NT, use_cache=False).loss.backward()
    found = []
    for layer in model.model.layers:
        taylor = {name: (p * p.grad).abs().detach() for name, p in layer.named_parameters()}
        channels = taylor["mlp.gate_proj.weight"].sum(1) + taylor["mlp.up_proj.weight"].sum(1)
        channels += taylor["mlp.down_proj.weight"].sum(0)
        heads = torch.stack(
            [
                taylor["self_attn.q_proj.weight"][32 * head : 32 * head + 32].sum()
                + taylor["self_attn.k_proj.weight"][16 * head : 16 * head + 16].sum()
                + taylor["self_attn.v_proj.weight"][16 * head : 16 * head + 16].sum()
                + taylor["self_attn.o_proj.weight"][:, 32 * head : 32 * head + 32].sum()
                for head in range(2)
            ]
        )
        found.append({"channels": channels, "heads": heads})
    return found


def least(scores: list[dict[str, Tensor]], channels: int, heads: int) -> list[tuple[list[int], list[int]]]:
    """Those that go from each block."""
    return [
        (block["channels"].argsort()[:channels].tolist(), block["heads"].argsort()[:heads].tolist()) for block in scores
    ]


def silence(model: PreTrainedModel, gone: list[tuple[list[int], list[int]]]) -> None:
    """Nothing leaves the channels and heads that are gone."""
    with torch.no_grad():
        for layer, (channels, heads) in zip(model.model.layers, gone, strict=True):
            layer.mlp.down_proj.weight[:, channels] = 0
            for head in heads:
                layer.self_attn.o_proj.weight[:, 32 * head : 32 * head + 32] = 0


def test_importance_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    gradient = torch.tensor([[1.0, 1.0], [-1.0, 2.0]])
    linears = {
        "gate.weight": (weight, gradient),
        "down.weight": (weight, gradient),
        "gate.bias": (weight[0], gradient[0]),
    }
    # |w g| = [[1, 2], [3, 1]]: rows 3 and 4, columns 4 and 3; of the bias 1 and 2.
    assert llm_pruner.importance(linears, {"gate": 0, "down": 1}, 2).tolist() == [3 + 4 + 1, 4 + 3 + 2]
    assert llm_pruner.importance(linears, {"gate": 0}, 1).tolist() == [7 + 3]
    # No bias of what reads the channels.
    linears["down.bias"] = (weight[0], gradient[0])
    assert llm_pruner.importance(linears, {"down": 1}, 2).tolist() == [4, 3]


def test_what_goes_is_what_a_whole_backward_pass_says(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    """And the narrower model computes what the whole one does when those channels and heads are silent."""
    model = deep_model(tmp_path / "model", blocks=3)
    result = compress(open_model(tmp_path / "model"), (CUT,), tokens_NT)
    scores = reference(model, tokens_NT)
    gone = least(scores, 64, 1)
    silence(model, gone)
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert found == pytest.approx(measured(model, tokens_NT), rel=1e-5)
    totals = [float(block["channels"].sum() + block["heads"].sum()) for block in scores]
    assert [block.importance for block in result.stages[0].blocks] == pytest.approx(totals, rel=1e-4)
    assert all(block.kept for block in result.stages[0].blocks)
    lost = sum(
        float(block["channels"][channels].sum() + block["heads"][heads].sum())
        for block, (channels, heads) in zip(scores, gone, strict=True)
    )
    assert f"With the others went {lost / sum(totals):.1%} of all importance" in result.stages[0].summary


def test_channels_that_do_nothing_are_those_that_go(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", blocks=3)
    idle = [
        (torch.randperm(128, generator=torch.Generator().manual_seed(block))[:64].tolist(), [block % 2])
        for block in range(3)
    ]
    silence(model, idle)
    model.save_pretrained(tmp_path / "model")
    result = compress(open_model(tmp_path / "model"), (CUT,), tokens_NT)
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    # Weights before a silent column have no gradient, so nothing that matters went.
    assert found == pytest.approx(measured(model, tokens_NT), rel=1e-5)


@pytest.mark.parametrize(
    "cut", [CUT, Bonsai(mlp_share=0.5, head_groups=1, submodels=10, samples=3, rounds=2)], ids=lambda cut: cut.method
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_chain_loads_in_stock_transformers_with_narrower_blocks(
    model_type: str, cut: Width, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    deep_model(tmp_path / "model", blocks=3, model_type=model_type)
    files = open_model(tmp_path / "model")
    recipe: tuple[Stage, ...] = (ShortGpt(blocks=1), cut, Wanda(pattern="2:4"), Gptq(bits=4, group_size=32))
    result = compress(files, recipe, tokens_NT)
    (tmp_path / "artifact").mkdir()
    WRITERS[Format.COMPRESSED_TENSORS](result, tmp_path / "artifact")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact").float()
    config = reloaded.config
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert measured(reloaded, tokens_NT) == pytest.approx(found, rel=1e-4)
    assert [report.stage for report in result.stages] == [0, 1]


def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    deep_model(tmp_path / "model", blocks=3)
    files = open_model(tmp_path / "model")
    steps: list[float] = []
    whole = compress(
        files, (CUT, Wanda()), tokens_NT, "whole", on_progress=lambda done, total: steps.append(done / total)
    )
    assert steps == sorted(steps)
    # In the survey, before the way back, and on it.
    for stop in (2, 3, 5):
        answers = iter([False] * stop)
        with pytest.raises(Drained):
            compress(files, (CUT, Wanda()), tokens_NT, f"{stop}", should_drain=lambda: next(answers, True))  # noqa: B023
        result = compress(files, (CUT, Wanda()), tokens_NT, f"{stop}")
        assert result.stages == whole.stages
        assert shard_bytes(tmp_path / f"{stop}") == shard_bytes(tmp_path / "whole")


def test_bfloat16_gradients_rank_nearly_alike(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    deep_model(tmp_path / "model", blocks=3)
    files = open_model(tmp_path / "model")
    full, half = (
        compress(files, (CUT,), tokens_NT, str(dtype), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    for exact, rough in zip(full.stages[0].blocks, half.stages[0].blocks, strict=True):
        assert rough.importance == pytest.approx(exact.importance, rel=0.05)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        (LlmPruner(head_groups=2), "head_groups"),
        (LlmPruner(mlp_share=0.01), "mlp_share"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    stage: LlmPruner, field: str, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    deep_model(tmp_path / "model", blocks=2)
    with pytest.raises(RecipeUnfit, match="128 MLP channels and 2 key-value heads") as raised:
        compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert raised.value.field == field


def test_gradients_that_are_not_finite_name_their_block(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model", blocks=3)
    with torch.no_grad():
        # The output is finite, its derivative is not: a norm of nothing, enlarged.
        model.get_parameter("model.layers.1.mlp.up_proj.weight").zero_()
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(3e38)
        model.get_parameter("model.layers.1.mlp.gate_proj.weight").fill_(1e4)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(NanFound, match="gradients of block 1"):
        compress(open_model(tmp_path / "model"), (CUT,), tokens_NT)
