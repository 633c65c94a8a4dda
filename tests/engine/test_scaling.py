"""Scales of input channels: moved into what makes the input without a trace, and chosen as AWQ's paper says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU, FAMILIES, MIXTURES, VOCABULARY, Compressor, random_model, shard_bytes, unfolded
from tests.engine.orders import config_of, order, save_model
from torch import Tensor

from paredown.contracts.job import Format
from paredown.contracts.recipes import Awq, Esparse, Fp8Static, Rtn, SmoothQuant, Stage, Wanda, recipe_name
from paredown.engine.activations import entering, roundings
from paredown.engine.architectures import Skeleton
from paredown.engine.forward import BlockForward
from paredown.engine.grid import nearest
from paredown.engine.method import LinearWeight
from paredown.engine.methods import METHODS
from paredown.engine.methods.awq import channel_scale
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.run import run
from paredown.engine.scaling import Fold
from paredown.engine.statistics import InputStatistics
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles

AWQ = Awq(bits=4, group_size=32, scale_steps=6)


def norm(weight: Tensor, *, bias: Tensor | None = None) -> Fold:
    dense = {"norm.weight": weight} | ({} if bias is None else {"norm.bias": bias})
    return Fold("norm", torch.arange(weight.numel()), dense, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_of_the_float_model_is_unchanged_by_scaling(family: str) -> None:
    """Every input of every block by random scales, in float64; the linears lie on a grid as the recipe's would."""
    model = random_model(family).double()
    architecture = Skeleton(model.config, torch.float64).architecture
    skeleton = Skeleton(model.config, torch.float64)
    generator = torch.Generator().manual_seed(3)
    parameters = unfolded(model)
    quantized: dict[str, QuantizedLinear] = {}
    for name in skeleton.all_linear_names():
        weight_OI = architecture.oriented(parameters[f"{name}.weight"].data)
        scale_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
        quantized[name] = QuantizedLinear((weight_OI / scale_O1).round().to(torch.int8), scale_O1, None, 8, None, True)
        weight_OI.copy_(quantized[name].dequantized())
    tokens_NT = torch.randint(VOCABULARY, (2, 16), generator=generator)
    dense = {name: parameter.data for name, parameter in parameters.items()}
    # Experts one by one: transformers' own kernel for them knows no float64.
    skeleton.put_from(dense.__getitem__, list(dense), CPU)
    with torch.no_grad():
        expected = skeleton.model(input_ids=tokens_NT).logits

    multipliers: dict[str, Tensor] = {}
    count = 0
    for index in range(skeleton.num_blocks):
        for group, names in enumerate(architecture.groups):
            producer = skeleton.producer(group)
            if producer is None:
                continue
            prefix = skeleton.block_prefix(index)
            channels = quantized[prefix + names[0]].codes_OI.shape[1]
            made = quantized.get(prefix + producer.name)
            rows_I = producer.rows(model.config, channels if made is None else made.codes_OI.shape[0], channels)
            fold = Fold(prefix + producer.name, rows_I, dense, quantized, producer.offset)
            scale_I = fold.shared(torch.rand(channels, generator=generator) * 4 + 0.1)
            fold.divide(scale_I)
            multipliers |= {prefix + name: scale_I for name in names}
            count += 1
    for name, linear in quantized.items():
        multiplier_I = multipliers.get(name, torch.ones(()))
        dense[f"{name}.weight"] = architecture.oriented(linear.dequantized() * multiplier_I)
    for index in range(skeleton.num_blocks):
        skeleton.put_from(dense.__getitem__, skeleton.block_names(index), CPU)
    with torch.no_grad():
        found = skeleton.model(input_ids=tokens_NT).logits

    scaled = {
        "gpt2": 3,
        "opt-projected": 2,
        "gpt_neox": 2,
        "gpt_neox-sequential": 2,
        "bloom": 2,
        "falcon": 0,
        "falcon-new": 2,
        "falcon-alibi": 0,
        "mixtral": 2 + 4,
        "qwen2_moe": 2 + 1 + 4,
        "qwen3_moe": 2 + 6,
        "olmoe": 2 + 4,
    }
    assert count == skeleton.num_blocks * scaled.get(family, 4)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def final_states(reader: CompressedModel | ModelFiles, tokens_NT: Tensor) -> Tensor:
    skeleton = Skeleton(reader.config, torch.float32)
    with torch.inference_mode():
        skeleton.load_outer(reader.tensor, CPU)
        forward = BlockForward(skeleton, tokens_NT, CPU)
        for index in range(skeleton.num_blocks):
            skeleton.put_from(reader.tensor, skeleton.block_names(index), CPU)
            names = skeleton.linear_names(index)
            with entering(skeleton.model, names, roundings(reader, names)):
                forward.keep(0, forward.call(index, 0))
    return forward.states[0]


@pytest.mark.parametrize(
    ("family", "recipe", "share"),
    [
        # What is left is the rounding of biases and of the codes' scales, after they were divided, to 16 bits.
        # A router may send a token elsewhere for them.
        *((family, (AWQ,), 0.3 if family in MIXTURES else 0.1) for family in FAMILIES),
        # Inputs whose channels were put into another order are not scaled.
        ("llama", (Esparse(pattern="2:4"), AWQ), 0.1),
        ("gpt2", (Esparse(pattern="2:4"), AWQ), 0.1),
        # Eight bits change little more than 16 bits' rounding of the weights does, and a token's largest value lies
        # between two steps of its grid.
        ("llama", (SmoothQuant(weights="nearest"),), 0.8),
        ("opt", (SmoothQuant(activations="static"),), 0.8),
        ("qwen2", (Fp8Static(),), 1e-6),
        ("llama-tied", (Wanda(), Rtn(group_size=32, embeddings=8)), 1e-6),
    ],
    ids=lambda value: recipe_name(value) if isinstance(value, tuple) else str(value),
)
def test_the_artifact_computes_what_the_stream_went_on_with(
    family: str,
    recipe: tuple[Stage, ...],
    share: float,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream divides the input by s and rounds it as the linear reads it, the artifact's producer is divided."""
    streamed: list[Tensor] = []

    def keep(self: BlockForward, micro_batch: int, output: Tensor) -> None:
        streamed[:] = [output]
        self.states[micro_batch] = output

    with monkeypatch.context() as patched:
        patched.setattr(BlockForward, "keep", keep)
        result = compress(tiny(family), recipe, tokens_NT)
    found, before = final_states(result, tokens_NT), final_states(tiny(family), tokens_NT)
    change = float((streamed[0] - before).norm())
    assert float((found - streamed[0]).norm()) < share * change


@pytest.mark.parametrize("family", ["llama-tied", "opt", "gpt2"])
def test_reruns_give_the_bytes_of_pauses(
    family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    compress(tiny(family), (AWQ,), tokens_NT, "paused")
    compress(tiny(family), (AWQ,), tokens_NT, "rerun", pausing=False)
    assert shard_bytes(tmp_path / "paused") == shard_bytes(tmp_path / "rerun")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_is_rounded_before_its_scale_is_settled(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_I = torch.randn(64, generator=generator).to(dtype)
    weight_I[3] = 0
    fold = norm(weight_I, bias=torch.ones(64, dtype=dtype))
    asked_I = torch.rand(64, generator=generator) * 8 + 0.05
    scale_I = fold.storable(asked_I)
    fold.divide(scale_I)
    assert torch.allclose(fold.dense["norm.weight"].float() * scale_I, weight_I.float(), rtol=1e-6)
    assert torch.allclose(scale_I, asked_I, rtol=0.01)
    assert torch.allclose(fold.dense["norm.bias"].float() * scale_I, torch.ones(64), rtol=0.01)


def test_a_scale_that_the_number_type_cannot_take_is_left_out() -> None:
    fold = norm(torch.tensor([6e4, 1e-7, 1.0], dtype=torch.float16))
    assert fold.storable(torch.tensor([0.5, 8.0, 2.0])).tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("asked", [0.05, 0.3, 4.0, 20.0, 60.0])
def test_a_norm_that_adds_one_takes_scales_too(asked: float) -> None:
    """Gemma's: near minus one its numbers lie 1/256 apart, so the scale is another than was asked for, and exact."""
    weight_I = (torch.rand(256, generator=torch.Generator().manual_seed(0)) * 0.6 - 0.3).bfloat16()
    fold = Fold("norm", torch.arange(256), {"norm.weight": weight_I.clone()}, {}, offset=1.0)
    scale_I = fold.storable(torch.full((256,), asked))
    assert torch.allclose(scale_I, torch.tensor(asked), rtol=0.2)
    fold.divide(scale_I)
    assert torch.allclose((fold.dense["norm.weight"].float() + 1) * scale_I, weight_I.float() + 1, rtol=1e-5)


def test_heads_that_share_values_share_a_scale() -> None:
    # Four heads of two channels read two heads of values; a group's scale is one for both of its heads.
    rows_I = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])
    linear = QuantizedLinear(torch.ones(4, 6, dtype=torch.int8), torch.ones(4, 2).bfloat16(), None, 4, 3, True)
    fold = Fold("v", rows_I, {"v.bias": torch.ones(4)}, {"v": linear})
    assert fold.shared(torch.arange(8.0)).tolist() == [1, 2, 1, 2, 5, 6, 5, 6]
    assert fold.largest(torch.arange(8.0)).tolist() == [2, 3, 2, 3, 6, 7, 6, 7]
    fold.divide(torch.tensor([1.0, 2, 1, 2, 4, 8, 4, 8]))
    assert fold.quantized["v"].scales_OG.tolist() == [[1, 1], [0.5, 0.5], [0.25, 0.25], [0.125, 0.125]]
    assert fold.dense["v.bias"].tolist() == [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_rows_of_super_blocks_take_a_scale(bits: int) -> None:
    """As small as a trained model's are: what super-blocks share is then below float16's normal numbers."""
    weight_OI = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    stage = Rtn.model_validate({"bits": bits, "k_quant": True}).for_width(512)
    linear = nearest(weight_OI, stage, torch.float16, "up")
    fold = Fold("up", torch.arange(4), {}, {"up": linear})
    scale_I = torch.tensor([0.5, 1, 2, 4])
    assert fold.storable(scale_I).tolist() == scale_I.tolist()
    fold.divide(scale_I)
    expected_OI = linear.dequantized() / scale_I.unsqueeze(1)
    assert (fold.quantized["up"].dequantized() - expected_OI).norm() < 2.0**-8 * expected_OI.norm()


def gathered(inputs_TI: Tensor) -> InputStatistics:
    statistics = InputStatistics("layer", inputs_TI.shape[1], METHODS["awq"].needs, CPU)
    for part in inputs_TI.split(100):
        statistics.add(part)
    statistics.complete()
    return statistics


def target(weight_OI: Tensor, fold: Fold | None) -> LinearWeight:
    return LinearWeight("layer", weight_OI.clone(), torch.bfloat16, fold=fold)


def test_a_channels_scale_by_hand() -> None:
    # The square root of mean |x|, its extremes made reciprocal; a silent channel counts as an average one, here 7.
    assert channel_scale(torch.tensor([1.0, 4, 16]), 0.5).tolist() == [0.5, 1.0, 2.0]
    assert channel_scale(torch.tensor([1.0, 4, 16]), 0.0).tolist() == [1.0, 1.0, 1.0]
    scale_I = channel_scale(torch.tensor([1.0, 0, 16, 11]), 1.0)
    assert scale_I.tolist() == [0.25, 1.75, 4.0, 2.75]
    assert channel_scale(torch.zeros(3), 0.5).tolist() == [1.0, 1.0, 1.0]


def test_awq_by_hand() -> None:
    # Unscaled the grid's scale is 1, and 0.4, which a loud input multiplies, is lost. With α = ½ the scales are ½ and
    # 2: 3.75 and 0.8 on a grid of ½ are 7 and 2 steps, which stand for 7 and 0.5.
    fold = norm(torch.ones(2).bfloat16())
    config = Awq(bits=4, group_size=None, scale_search="min_max", scale_steps=2)
    linear = target(torch.tensor([[7.5, 0.4]]), fold)
    METHODS["awq"].compress(linear, gathered(torch.tensor([[1.0, 16.0], [1.0, -16.0]])), config)
    assert linear.scale_I is not None
    assert linear.scale_I.tolist() == [0.5, 2.0]
    assert linear.quantized is not None
    assert linear.quantized.codes_OI.tolist() == [[7, 2]]
    assert linear.quantized.scales_OG.tolist() == [[0.5]]
    assert linear.weight_OI.tolist() == [[7.0, 0.5]]


def test_the_mean_magnitude_is_of_all_tokens() -> None:
    inputs_TI = torch.randn(250, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gathered(inputs_TI).magnitude_I, inputs_TI.abs().mean(0))


@pytest.mark.parametrize("search", ["min_max", "least_squares"])
@pytest.mark.parametrize("bits", [3, 4])
def test_awq_loses_less_output_than_rounding_to_nearest(bits: int, search: str) -> None:
    """And scaling does more than searching ranges alone, which one step of scale is."""
    losses = {"rtn": 0.0, "ranges": 0.0, "awq": 0.0}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weight_OI = torch.randn(24, 128, generator=generator)
        loud_I = torch.randn(128, generator=generator).mul(1.5).exp()
        inputs_TI = torch.randn(400, 128, generator=generator) * loud_I
        settings = {"bits": bits, "group_size": 32, "scale_search": search}
        recipes: dict[str, Stage] = {
            "rtn": Rtn.model_validate(settings),
            "ranges": Awq.model_validate({**settings, "scale_steps": 1}),
            "awq": Awq.model_validate(settings),
        }
        for name, stage in recipes.items():
            linear = target(weight_OI, norm(torch.ones(128).bfloat16()))
            METHODS[stage.method].compress(linear, gathered(inputs_TI), stage)
            losses[name] += float((inputs_TI @ (linear.weight_OI - weight_OI).T).square().sum())
    assert losses["awq"] < 0.95 * losses["ranges"]
    assert losses["awq"] < 0.8 * losses["rtn"]


def test_pruned_weights_stay_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs_TI = torch.randn(300, 64, generator=generator) * torch.randn(64, generator=generator).exp()
    for symmetric in (True, False):
        linear = target(torch.randn(16, 64, generator=generator), norm(torch.ones(64).bfloat16()))
        METHODS["wanda"].compress(linear, gathered(inputs_TI), Wanda(sparsity=0.5))
        pruned_OI = linear.weight_OI == 0
        METHODS["awq"].compress(linear, gathered(inputs_TI), Awq(bits=3, group_size=32, symmetric=symmetric))
        assert bool((linear.weight_OI[pruned_OI] == 0).all())
        assert linear.scale_I is not None
        assert float(linear.scale_I.std()) > 0


@pytest.mark.parametrize(
    ("family", "skip", "unscaled"),
    [
        ("llama", (), set()),
        ("gpt2", (), {"mlp.c_proj"}),
        ("opt-projected", (), {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1"}),
        ("llama", ("*.up_proj",), {"mlp.gate_proj", "mlp.down_proj"}),
        ("qwen2", ("*.v_proj",), {"self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj"}),
    ],
)
def test_layers_whose_input_takes_no_scale_are_named(
    family: str,
    skip: tuple[str, ...],
    unscaled: set[str],
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
) -> None:
    files = tiny(family)
    result = compress(files, (quick(skip),), tokens_NT)
    prefix = Skeleton(files.config, torch.float32).block_prefix(1)
    layers = {layer.name.removeprefix(prefix): layer for layer in result.layers if layer.name.startswith(prefix)}
    assert {name for name, layer in layers.items() if layer.scaled is False} == unscaled
    for name, layer in layers.items():
        if result.quantized(layer.name) is None:
            assert layer.scaled is None
            assert torch.equal(result.tensor(f"{prefix}{name}.weight"), files.tensor(f"{prefix}{name}.weight"))
        elif name not in unscaled:
            assert layer.scaled is True


def test_a_report_warns_of_inputs_that_were_not_scaled(tmp_path: Path) -> None:
    save_model(tmp_path / "model", config_of("gpt2"))
    recipe = [{"method": "awq", "scale_steps": 1}]
    unmeasured = order(tmp_path, recipe, format=Format.SAFETENSORS, evaluation=None, evaluation_text=None)
    report = run(unmeasured, lambda _progress: None, lambda: False).report
    [warning] = [warning for warning in report.warnings if "could not be scaled" in warning]
    assert "2 linear layers" in warning
    assert "transformer.h.0.mlp.c_proj, transformer.h.1.mlp.c_proj." in warning


def quick(skip: tuple[str, ...]) -> Awq:
    return Awq(bits=4, group_size=32, scale_steps=2, skip=skip)
