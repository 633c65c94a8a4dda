"""Rounded activations: SmoothQuant and FP8 by hand, in the stream, and as transformers reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.conftest import CPU, Compressor, shard_bytes
from tests.engine.orders import config_of, order, save_model
from torch import Tensor

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import Format
from paredown.contracts.recipes import Fp8, Fp8Gptq, Fp8Static, SmoothQuant, Stage
from paredown.core.sizes import output_bytes
from paredown.engine import statistics
from paredown.engine.activations import ActivationGrid, entering, static_scale
from paredown.engine.errors import FormatRefused, RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.method import LinearWeight
from paredown.engine.methods import METHODS
from paredown.engine.methods.smoothquant import channel_scale
from paredown.engine.run import run
from paredown.engine.scaling import Fold
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.weights import ModelFiles


def gathered(stage: Stage, inputs_TI: Tensor) -> InputStatistics:
    statistics = InputStatistics("layer", inputs_TI.shape[1], METHODS[stage.method].needs, CPU)
    for part in inputs_TI.split(100):
        statistics.add(part)
    statistics.complete()
    return statistics


def compressed(stage: Stage, weight_OI: Tensor, inputs_TI: Tensor, fold: Fold | None = None) -> LinearWeight:
    linear = LinearWeight("layer", weight_OI.clone(), torch.bfloat16, fold=fold)
    METHODS[stage.method].compress(linear, gathered(stage, inputs_TI), stage)
    return linear


def norm(channels: int) -> Fold:
    return Fold("norm", torch.arange(channels), {"norm.weight": torch.ones(channels).bfloat16()}, {})


def test_each_tokens_integers_by_hand() -> None:
    # The grid's step is a token's largest value over 127.5: 1 for the first, 2 for the second.
    inputs_BTI = torch.tensor([[[127.5, 0.4, -1.6], [-255.0, 2.9, 0.0]]])
    assert ActivationGrid("int").rounded(inputs_BTI).tolist() == [[[127.0, 0.0, -2.0], [-256.0, 2.0, 0.0]]]
    static = ActivationGrid("int", torch.tensor([1.0]))
    assert static.rounded(inputs_BTI).tolist() == [[[127.0, 0.0, -2.0], [-128.0, 3.0, 0.0]]]


def test_eight_bit_floats_by_hand() -> None:
    # Three bits of mantissa: between 16 and 32 the steps are 2. The largest is 448.
    inputs_BTI = torch.tensor([[[448.0, 17.4, -0.3]]])
    assert ActivationGrid("float").rounded(inputs_BTI).tolist() == [[[448.0, 18.0, -0.3125]]]
    assert ActivationGrid("float", torch.tensor([0.5])).rounded(inputs_BTI).tolist() == [[[224.0, 18.0, -0.3125]]]
    assert static_scale(torch.tensor(448.0), "float", torch.bfloat16).tolist() == [1.0]
    assert static_scale(torch.tensor(255.0), "int", torch.bfloat16).tolist() == [2.0]


def test_tokens_that_lie_flattened_have_no_scale_of_their_own() -> None:
    with pytest.raises(RecipeUnfit, match="static"):
        ActivationGrid("int").rounded(torch.ones(3, 4))
    ActivationGrid("int", torch.ones(1)).rounded(torch.ones(3, 4))


def test_a_smoothing_scale_by_hand() -> None:
    # √max|x| / √max|w|; a silent channel, and one that nothing reads, keep theirs.
    peak_I, largest_I = torch.tensor([16.0, 4.0, 0.0, 9.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    assert channel_scale(peak_I, largest_I, 0.5).tolist() == [4.0, 1.0, 1.0, 1.0]
    assert channel_scale(peak_I, largest_I, 1.0).tolist() == [16.0, 4.0, 1.0, 1.0]


@pytest.mark.parametrize("loud", range(3))
def test_heads_that_share_values_are_smoothed_for_the_loudest(loud: int) -> None:
    """By the largest input and weight of all query heads that read a value, whichever head they are of."""
    peak_IH, largest_IH = torch.ones(3, 4), torch.ones(3, 4)
    peak_IH[loud, 1], largest_IH[loud, 2] = 64.0, 16.0
    inputs_TI, weight_OI = torch.diag(peak_IH.flatten()), torch.diag(largest_IH.flatten())
    rows_I = torch.arange(4).repeat(3)
    fold = Fold("v", rows_I, {"v.weight": torch.ones(4).bfloat16()}, {})
    stage = SmoothQuant(alpha=0.5, weights="nearest")
    result = compressed(stage, weight_OI, inputs_TI, fold)
    assert result.scale_I is not None
    assert result.scale_I.view(3, 4).tolist() == [[1.0, 8.0, 0.25, 1.0]] * 3


def test_smoothquant_by_hand() -> None:
    stage = SmoothQuant(activations="static", alpha=0.5)
    linear = compressed(stage, torch.tensor([[1.0, 4.0]]), torch.tensor([[16.0, 4.0], [-8.0, 1.0]]), norm(2))
    assert linear.scale_I is not None
    assert linear.quantized is not None
    assert linear.scale_I.tolist() == [4.0, 1.0]
    # Both weights become 4 and both channels reach 4.
    assert linear.quantized.codes_OI.tolist() == [[127, 127]]
    assert linear.quantized.activations is not None
    assert linear.quantized.activations.scale is not None
    assert linear.quantized.activations.scale.item() == pytest.approx(4 / 127.5, rel=0.004)


def test_fp8_by_hand() -> None:
    linear = compressed(Fp8(), torch.tensor([[448.0, 17.4, 0.0], [0.0, 0.0, 0.0]]), torch.ones(1, 3))
    assert linear.weight_OI.tolist() == [[448.0, 18.0, 0.0], [0.0, 0.0, 0.0]]
    assert linear.quantized is not None
    assert linear.quantized.codes_OI.dtype == torch.float8_e4m3fn
    assert linear.quantized.scales_OG.tolist() == [[1.0], [1.0]]


def test_fp8_with_gptq_by_hand() -> None:
    # The last two channels are always equal. 17.4 becomes 18, so 21.2 makes up for 0.6: 20.6 is nearer to 20 than 22.
    weight_OI, inputs_TI = torch.tensor([[448.0, 17.4, 21.2]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    assert compressed(Fp8(), weight_OI, inputs_TI).weight_OI.tolist() == [[448.0, 18.0, 22.0]]
    linear = compressed(Fp8Gptq(), weight_OI, inputs_TI)
    assert linear.weight_OI.tolist() == [[448.0, 18.0, 20.0]]
    assert linear.quantized is not None
    assert linear.quantized.codes_OI.dtype == torch.float8_e4m3fn
    assert linear.quantized.activations is not None
    assert linear.quantized.activations.scale is None


def test_fp8_with_gptq_loses_less_output_than_rounding_to_nearest() -> None:
    losses = {"fp8": 0.0, "fp8-gptq": 0.0}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        mixing_II = torch.randn(64, 64, generator=generator) / 4 + torch.eye(64)
        inputs_TI = torch.randn(400, 64, generator=generator) @ mixing_II
        weight_OI = torch.randn(24, 64, generator=generator)
        for stage in (Fp8(), Fp8Gptq()):
            result_OI = compressed(stage, weight_OI, inputs_TI).weight_OI
            losses[stage.method] += float((inputs_TI @ (result_OI - weight_OI).T).square().sum())
    assert losses["fp8-gptq"] < 0.7 * losses["fp8"]


def test_fp8_with_gptq_keeps_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(200, 64, generator=generator)
    linear = LinearWeight("layer", torch.randn(16, 64, generator=generator), torch.bfloat16)
    pruned_OI = torch.rand(16, 64, generator=generator) < 0.5
    linear.prune(pruned_OI)
    METHODS["fp8-gptq"].compress(linear, gathered(Fp8Gptq(), inputs_TI), Fp8Gptq())
    assert bool((linear.weight_OI[pruned_OI] == 0).all())
    assert bool((linear.weight_OI[~pruned_OI] != 0).any())


def test_smoothing_saves_what_outliers_would_cost() -> None:
    """The paper's claim: with a few loud channels the product of both rounded sides is far nearer to the exact one."""
    errors = {0.0: 0.0, 0.5: 0.0}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weight_OI = torch.randn(32, 64, generator=generator)
        inputs_TI = torch.randn(200, 64, generator=generator)
        inputs_TI[:, :2] *= 60
        for alpha in errors:
            # Without smoothing there is nothing that takes a scale.
            linear = compressed(SmoothQuant(alpha=alpha), weight_OI, inputs_TI, norm(64) if alpha else None)
            assert linear.quantized is not None
            assert linear.quantized.activations is not None
            entered_TI = inputs_TI if linear.scale_I is None else inputs_TI / linear.scale_I
            rounded_TI = linear.quantized.activations.rounded(entered_TI.unsqueeze(0))[0]
            product = rounded_TI @ linear.quantized.dequantized().float().T
            errors[alpha] += float((product - inputs_TI @ weight_OI.T).square().sum())
    assert errors[0.5] < 0.2 * errors[0.0]


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_the_alpha_that_is_found_is_the_best_of_those_tried(activations: str) -> None:
    gained = False
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        weight_OI = torch.randn(32, 64, generator=generator)
        inputs_TI = torch.randn(200, 64, generator=generator) * torch.randn(64, generator=generator).mul(2).exp()

        def error(alpha: float | None, weight_OI: Tensor = weight_OI, inputs_TI: Tensor = inputs_TI) -> float:
            stage = SmoothQuant.model_validate({"alpha": alpha, "activations": activations, "weights": "nearest"})
            linear = compressed(stage, weight_OI, inputs_TI, norm(64))
            assert linear.quantized is not None
            assert linear.quantized.activations is not None
            assert linear.scale_I is not None
            rounded_TI = linear.quantized.activations.rounded((inputs_TI / linear.scale_I).unsqueeze(0))[0]
            exact_TO = inputs_TI @ weight_OI.T
            change_TO = rounded_TI @ linear.quantized.dequantized().float().T - exact_TO
            return float((change_TO.square().sum(1) / exact_TO.square().sum(1)).sum())

        found, tried = error(None), [error(alpha) for alpha in SmoothQuant().alphas]
        assert found == pytest.approx(min(tried), rel=1e-5)
        gained |= found < 0.95 * error(0.5)
    assert gained


def test_smoothed_weights_lose_less_output_when_later_columns_absorb_errors() -> None:
    losses = {"gptq": 0.0, "nearest": 0.0}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        mixing_II = torch.randn(64, 64, generator=generator) / 4 + torch.eye(64)
        inputs_TI = torch.randn(200, 64, generator=generator) @ mixing_II * torch.randn(64, generator=generator).exp()
        weight_OI = torch.randn(24, 64, generator=generator)
        for weights in losses:
            stage = SmoothQuant.model_validate({"alpha": 0.7, "weights": weights})
            result_OI = compressed(stage, weight_OI, inputs_TI, norm(64)).weight_OI
            losses[weights] += float((inputs_TI @ (result_OI - weight_OI).T).square().sum())
    assert losses["gptq"] < 0.8 * losses["nearest"]


def test_a_sample_is_spread_evenly_however_tokens_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLED_TOKENS", 4)
    for size in (1, 3, 23):
        gathered = InputStatistics("layer", 1, {Statistic.SAMPLE}, CPU)
        for part in torch.arange(23.0).unsqueeze(1).split(size):
            gathered.add(part)
        assert gathered.sample_TI.flatten().tolist() == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]


def test_inputs_change_only_where_asked() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    inputs = torch.randn(1, 3, 2)
    with torch.no_grad():
        expected = model[1](2 * model[0](inputs))
        with entering(model, ["0", "1"], {"1": lambda arrived: 2 * arrived}):
            assert torch.equal(model(inputs), expected)
        assert torch.equal(model(inputs), model[1](model[0](inputs)))


@pytest.mark.parametrize("stage", [SmoothQuant(), SmoothQuant(activations="static"), Fp8Static()], ids=str)
def test_reruns_give_the_bytes_of_pauses(
    stage: Stage, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    compress(tiny("llama-tied"), (stage,), tokens_NT, "paused")
    compress(tiny("llama-tied"), (stage,), tokens_NT, "rerun", pausing=False)
    assert shard_bytes(tmp_path / "paused") == shard_bytes(tmp_path / "rerun")


def test_activations_are_rounded_where_perplexity_is_measured(
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = compress(tiny("llama"), (Fp8(skip=("*.down_proj",)),), None)
    assert result.activations("model.layers.0.mlp.down_proj") is None
    assert result.activations("model.layers.0.mlp.up_proj") is not None
    rounded, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    monkeypatch.setattr(type(result), "activations", lambda _self, _name: None)
    exact, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert rounded != pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("model_type", "stage", "number_format"),
    [
        ("llama", {"method": "smoothquant"}, "int-quantized"),
        pytest.param("opt", {"method": "fp8-static"}, "float-quantized", marks=pytest.mark.slow),
        pytest.param("qwen3", {"method": "fp8"}, "float-quantized", marks=pytest.mark.slow),
        pytest.param("llama", {"method": "fp8-gptq"}, "float-quantized", marks=pytest.mark.slow),
        *(
            pytest.param(model_type, {"method": "smoothquant"}, "int-quantized", marks=pytest.mark.slow)
            for model_type in ("gemma2", "gemma3_text", "phi3", "gpt_neox", "bloom", "falcon-new")
        ),
        pytest.param(
            "opt", {"method": "smoothquant", "activations": "static"}, "int-quantized", marks=pytest.mark.slow
        ),
    ],
)
def test_transformers_rounds_as_was_measured(
    model_type: str, stage: dict[str, Any], number_format: str, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", config_of(model_type, hidden=128))
    report = run(order(tmp_path, [stage], runtimes=("transformers",)), lambda _progress: None, lambda: False).report

    assert report.artifact is not None
    # Once transformers has loaded gemma in bfloat16, the factor of its embeddings stays rounded to that, whatever the
    # model is cast to; inputs that differ so little may still round to another code.
    close = 1e-3 if model_type.startswith("gemma") else 1e-5
    assert report.runtimes[0].perplexity == pytest.approx(report.artifact.perplexity, rel=close)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["format"] == number_format
    assert not quantization.get("dequantize", False), "transformers would leave activations as they are"
    inputs = quantization["config_groups"]["group_0"]["input_activations"]
    static = stage["method"] == "fp8-static" or "activations" in stage
    assert (inputs["dynamic"], inputs["strategy"]) == ((False, "tensor") if static else (True, "token"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    scales = [tensor for name, tensor in tensors.items() if name.endswith(".input_scale")]
    assert len(scales) == (12 if static else 0)
    settings = order(tmp_path, [stage]).recipe
    planned = output_bytes(shape_from_config(config), settings, Format.COMPRESSED_TENSORS)
    assert report.size_bytes == pytest.approx(planned, rel=0.02)


def test_a_format_that_cannot_say_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatRefused, match="rounds activations"):
        run(order(tmp_path, [{"method": "fp8"}], format=Format.SAFETENSORS), lambda _progress: None, lambda: False)
