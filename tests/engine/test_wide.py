"""bfloat16 on processors that have no units for it."""

import pytest
import torch
from tests.engine.conftest import FAMILIES, random_model, unfolded
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from paredown.engine import wide
from paredown.engine.architectures import Skeleton


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "multiplies_bfloat16", lambda: False)


def linear(out_features: int, in_features: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(out_features)
    return nn.Linear(in_features, out_features, bias=bias, dtype=torch.bfloat16)


@pytest.mark.usefixtures("old_processor")
@pytest.mark.parametrize("kind", ["linear", "linear without a bias", "Conv1D"])
@pytest.mark.parametrize("panel_weights", [2**24, 100])
def test_products_are_those_in_float32_rounded_once(
    kind: str, panel_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "_PANEL_WEIGHTS", panel_weights)
    torch.manual_seed(0)
    module = Conv1D(24, 16).bfloat16() if kind == "Conv1D" else linear(24, 16, bias=kind == "linear")
    inputs = torch.randn(2, 5, 16, dtype=torch.bfloat16)
    exact = {name: parameter.double() for name, parameter in module.named_parameters()}
    weight_OI = exact["weight"].T if kind == "Conv1D" else exact["weight"]
    expected = inputs.double() @ weight_OI.T + exact.get("bias", torch.zeros(()))
    wide.widen_linears(module, torch.bfloat16)
    output: Tensor = module(inputs)
    assert output.dtype == torch.bfloat16
    assert type(module) not in (nn.Linear, Conv1D)
    # Half a step of bfloat16, and nothing of sums that were rounded on their way.
    assert torch.all((output.double() - expected).abs() <= expected.abs() * 2**-8 * 1.001 + 1e-6)


@pytest.mark.usefixtures("old_processor")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_a_family_is_multiplied_so(family: str) -> None:
    model = random_model(family)
    tokens = torch.arange(24).view(2, 12) % model.config.vocab_size
    narrow, widened = (skeleton_with_weights(model, dtype) for dtype in (torch.float32, torch.bfloat16))
    plain = [name for name, module in widened.model.named_modules() if type(module) in (nn.Linear, Conv1D)]
    assert plain == []
    with torch.inference_mode():
        expected = narrow.model(tokens).logits
        found = widened.model(tokens).logits
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(expected.flatten(), found.float().flatten(), dim=0) > 0.99


@pytest.mark.usefixtures("old_processor")
def test_float32_is_left_alone() -> None:
    module = nn.Linear(4, 4)
    wide.widen_linears(module, torch.float32)
    assert type(module) is nn.Linear


def test_processors_with_units_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "multiplies_bfloat16", lambda: True)
    module = linear(4, 4, bias=True)
    wide.widen_linears(module, torch.bfloat16)
    assert type(module) is nn.Linear


@pytest.mark.usefixtures("old_processor")
def test_gradients_pass_as_they_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_PANEL_WEIGHTS", 40)
    module = linear(12, 8, bias=True)
    inputs = torch.randn(3, 8, dtype=torch.bfloat16)
    gradients = []
    for widened in (False, True):
        if widened:
            wide.widen_linears(module, torch.bfloat16)
        given = inputs.clone().requires_grad_()
        module(given).float().square().sum().backward()
        assert given.grad is not None
        gradients.append(given.grad)
    assert torch.allclose(gradients[0].float(), gradients[1].float(), rtol=0.05, atol=0.05)


def skeleton_with_weights(model: nn.Module, dtype: torch.dtype) -> Skeleton:
    skeleton = Skeleton(model.config, dtype)
    weights = unfolded(model)
    skeleton.load_outer(weights.__getitem__, torch.device("cpu"))
    for index in range(skeleton.num_blocks):
        skeleton.put_from(weights.__getitem__, skeleton.block_names(index), torch.device("cpu"))
    return skeleton
