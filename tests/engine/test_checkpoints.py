"""The layouts of AutoGPTQ and AutoAWQ, read back by a reader written here from their published packing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.orders import config_of, order, save_model
from torch import Tensor

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import Format
from paredown.contracts.recipes import Gptq, Rtn
from paredown.core.sizes import output_bytes
from paredown.engine.errors import ArtifactDamaged, FormatRefused
from paredown.engine.formats import WRITERS, checkpoints, native
from paredown.engine.formats.checkpoints import AwqBlock, GptqBlock
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.run import run
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import open_model

NAME = "model.layers.1.mlp.up_proj"
GRIDS = [
    *((Format.GPTQ, bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)),
    (Format.GPTQ, 4, None, True),
    *((Format.AWQ, 4, size, symmetric) for size in (32, None) for symmetric in (True, False)),
]


def compressed(root: Path, file_format: Format, stage: Rtn, model_type: str = "llama") -> CompressedModel:
    files = open_model(save_model(root / "model", config_of(model_type)))
    shape = shape_from_config(files.config.to_dict())
    return compress_model(
        checkpoints.prepared(files, file_format, shape, (stage,)),
        (stage,),
        None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        work_dir=root / "work",
        identity="test",
        on_progress=lambda _done, _all: None,
        should_drain=lambda: False,
    )


def written(model: CompressedModel, file_format: Format, root: Path) -> Path:
    directory = root / "artifact"
    directory.mkdir()
    WRITERS[file_format](model, directory)
    return directory


def bits_of(words_RW: Tensor) -> Tensor:
    """Every bit of each row's 32-bit words, the lowest of the first word first."""
    return ((words_RW.long()[:, :, None] >> torch.arange(32)) & 1).flatten(1)


def numbers(words_RW: Tensor, bits: int) -> Tensor:
    bits_RN = bits_of(words_RW)
    return (bits_RN.view(len(bits_RN), -1, bits) * 2 ** torch.arange(bits)).sum(2)


def gptq_weight(tensors: dict[str, Tensor], name: str, bits: int, less: int) -> Tensor:
    codes_IO = numbers(tensors[f"{name}.qweight"].T, bits).T
    zeros_GO = numbers(tensors[f"{name}.qzeros"], bits) + less
    group_I = tensors[f"{name}.g_idx"].long()
    return ((codes_IO - zeros_GO[group_I]).half() * tensors[f"{name}.scales"][group_I]).T


def awq_numbers(words_RW: Tensor) -> Tensor:
    """AutoAWQ's packing: output 8k + order[i] lies in the i-th four bits of word k."""
    found = torch.empty(len(words_RW), words_RW.shape[1] * 8, dtype=torch.long)
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        found[:, output::8] = (words_RW.long() >> (4 * place)) & 15
    return found


def awq_weight(tensors: dict[str, Tensor], name: str) -> Tensor:
    codes_IO, zeros_GO = awq_numbers(tensors[f"{name}.qweight"]), awq_numbers(tensors[f"{name}.qzeros"])
    size = len(codes_IO) // len(zeros_GO)
    scales_IO = tensors[f"{name}.scales"].repeat_interleave(size, 0)
    return ((codes_IO - zeros_GO.repeat_interleave(size, 0)).half() * scales_IO).T


@pytest.mark.parametrize(("file_format", "bits", "group_size", "symmetric"), GRIDS)
def test_the_files_hold_what_was_measured_bit_for_bit(
    tmp_path: Path, file_format: Format, bits: int, group_size: int | None, symmetric: bool
) -> None:
    stage = Rtn.model_validate(
        {"bits": bits, "group_size": group_size, "symmetric": symmetric, "scale_search": "min_max"}
    )
    model = compressed(tmp_path, file_format, stage)
    directory = written(model, file_format, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    block = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert (block["quant_method"], block["bits"], block["group_size"]) == (file_format, bits, group_size or -1)
    loaded = native.load(directory)
    assert loaded.dtype == torch.float16
    for name in model.linear_names:
        measured = model.tensor(f"{name}.weight")
        assert measured.dtype == torch.float16
        if file_format is Format.GPTQ:
            less = {"gptq": 1, "gptq_v2": 0}[block["checkpoint_format"]]
            found = gptq_weight(tensors, name, bits, less)
        else:
            found = awq_weight(tensors, name)
        assert torch.equal(found, measured), name
        assert torch.equal(loaded.get_parameter(f"{name}.weight"), measured), name
    planned = output_bytes(shape_from_config(model.config.to_dict()), (stage,), file_format)
    assert (directory / "model.safetensors").stat().st_size == pytest.approx(planned, rel=0.02)


def test_gptq_packs_three_bits_along_the_inputs_into_three_words() -> None:
    codes_OI = torch.zeros(32, 32, dtype=torch.uint8)
    # Code 10 lies over the end of the first word: its low two bits there, its high one in the second.
    codes_OI[5, 10] = 0b101
    linear = QuantizedLinear(codes_OI, torch.ones(32, 1).half(), torch.zeros(32, 1).byte(), 3, 32, symmetric=False)
    packed = GptqBlock.of(linear, [], []).encode(linear)
    assert packed["qweight"].shape == (3, 32)
    assert packed["qweight"][:, 5].tolist() == [0b01 << 30, 1, 0]
    assert packed["qweight"].count_nonzero() == 2


def test_a_zero_point_of_zero_is_not_lost_and_symmetric_ones_are_stored_less_one() -> None:
    codes_OI = torch.randint(16, (32, 32)).byte()
    zeros_OG = torch.arange(32).remainder(16).byte()[:, None]
    linear = QuantizedLinear(codes_OI, torch.ones(32, 1).half(), zeros_OG, 4, 32, symmetric=False)
    block = GptqBlock.of(linear, [], [])
    assert block.checkpoint_format == "gptq_v2"
    assert torch.equal(block.decode(block.encode(linear), 32).dequantized(), linear.dequantized())
    signed = QuantizedLinear(codes_OI.char() - 8, torch.ones(32, 1).half(), None, 4, 32, symmetric=True)
    assert GptqBlock.of(signed, [], []).encode(signed)["qzeros"].tolist() == [[0x77777777] * 4]
    assert AwqBlock.of(signed, [], []).encode(signed)["qzeros"].tolist() == [[0x88888888 - 2**32] * 4]


def test_skipped_layers_are_named(tmp_path: Path) -> None:
    stage = Rtn(skip=("*.down_proj",), scale_search="min_max")
    for file_format in (Format.GPTQ, Format.AWQ):
        model = compressed(tmp_path / file_format, file_format, stage)
        directory = written(model, file_format, tmp_path / file_format)
        block = json.loads((directory / "config.json").read_text())["quantization_config"]
        if file_format is Format.GPTQ:
            [modules] = block["modules_in_block_to_quantize"]
            assert "mlp.up_proj" in modules
            assert "mlp.down_proj" not in modules
        else:
            assert block["modules_to_not_convert"] == [f"model.layers.{index}.mlp.down_proj" for index in (0, 1)]
        down = "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(native.load(directory).get_parameter(down), model.tensor(down).half())


@pytest.mark.parametrize("file_format", [Format.GPTQ, Format.AWQ])
def test_a_run_claims_the_loader_and_no_other_runtime(tmp_path: Path, file_format: Format) -> None:
    recipe = [Gptq(group_size=32).model_dump(exclude_defaults=True) | {"method": "gptq"}]
    report = run(
        order(tmp_path, recipe, runtimes=("transformers",), format=file_format), lambda _progress: None, lambda: False
    ).report
    assert [proof.runtime for proof in report.runtimes if proof.loads] == ["native"]
    assert {proof.runtime for proof in report.runtimes} == {"native", "transformers", "vllm", "llama.cpp"}
    assert report.artifact is not None
    assert report.runtimes[0].perplexity == pytest.approx(report.artifact.perplexity, rel=1e-3)


def test_sizes_are_those_that_the_recipe_leaves(tmp_path: Path) -> None:
    """An MLP of 112 channels fits no such file, one of 96 does."""
    config = config_of("llama")
    config.intermediate_size = 112
    save_model(tmp_path / "model", config)
    recipe = [{"method": "llm-pruner", "mlp_share": 0.15}, {"method": "gptq", "group_size": 32}]
    asked = order(tmp_path, recipe, runtimes=("transformers",), format=Format.GPTQ)
    report = run(asked, lambda _progress: None, lambda: False).report
    assert [proof.runtime for proof in report.runtimes if proof.loads] == ["native"]


@pytest.mark.parametrize("file_format", [Format.GPTQ, Format.AWQ])
def test_a_scale_beyond_float16_is_an_error_that_names_the_layer(tmp_path: Path, file_format: Format) -> None:
    directory = save_model(tmp_path / "model", config_of("llama"))
    tensors = load_file(directory / "model.safetensors")
    tensors[f"{NAME}.weight"][0, 0] = 2e6
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    rough = {"method": "rtn", "group_size": 32, "scale_search": "min_max"}
    with pytest.raises(FormatRefused, match=rf"Weights of {NAME} are too large"):
        run(order(tmp_path, [rough], format=file_format, evaluation=None), lambda _progress: None, lambda: False)
    report = run(order(tmp_path, [rough], evaluation=None), lambda _progress: None, lambda: False).report
    assert report.layers


def test_groups_in_another_order_are_damage(tmp_path: Path) -> None:
    model = compressed(tmp_path, Format.GPTQ, Rtn(group_size=32, scale_search="min_max"))
    directory = written(model, Format.GPTQ, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {f"{NAME}.g_idx": tensors[f"{NAME}.g_idx"].flip(0)}, directory / "model.safetensors")
    with pytest.raises(ArtifactDamaged, match="up_proj, g_idx"):
        native.load(directory)


def test_other_models_are_refused_by_the_engine_too(tmp_path: Path) -> None:
    with pytest.raises(FormatRefused, match="is written of llama"):
        compressed(tmp_path, Format.AWQ, Rtn(), "gpt2")
