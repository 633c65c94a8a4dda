"""The native format: what its loader gives back, and what it says of files that are not what they should be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.engine.conftest import CPU, FAMILIES, Compressor
from tests.engine.orders import order
from torch import Tensor
from transformers import AutoModelForCausalLM

from paredown.contracts.recipes import Gptq, Mixed, Owq, Rtn, Squeezellm, Stage, Svd
from paredown.engine.errors import ArtifactDamaged, ArtifactNewer
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import files, native
from paredown.engine.formats.packing import pack, packed_bytes, unpack
from paredown.engine.run import run
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles

RECIPES: dict[str, tuple[Stage, ...]] = {
    "factors": (Svd(ratio=0.3),),
    "grid": (Rtn(bits=3, group_size=32, symmetric=False, scale_search="min_max"),),
    "codebooks": (Squeezellm(bits=3, outliers=0.02),),
    "mixed columns": (Owq(bits=3, group_size=32, symmetric=False, extra_bits=0.5),),
    "several widths": (Mixed(average_bits=4.5, choices=(2, 3, 5, 8), group_size=32, symmetric=False, embeddings=8),),
    "some of each": (Gptq(bits=5, group_size=None, skip=("*.k_proj", "*mlp*", "*.h.0.*")),),
}


def written(model: CompressedModel, directory: Path) -> Path:
    directory.mkdir()
    assert native.write(model, directory) == sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return directory


@pytest.fixture
def artifact(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> tuple[CompressedModel, Path]:
    model = compress(tiny("llama"), RECIPES["factors"], tokens_NT)
    return model, written(model, tmp_path / "artifact")


@given(data=st.data(), bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 70))
def test_codes_are_packed_densely_and_come_back(data: st.DataObject, bits: int, rows: int, columns: int) -> None:
    seed = data.draw(st.integers(0, 2**31))
    codes_OI = torch.randint(2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed_OB = pack(codes_OI, bits)
    assert packed_OB.shape == (rows, packed_bytes(columns, bits))
    assert packed_bytes(columns, bits) * 8 - columns * bits < 8
    assert torch.equal(unpack(packed_OB, bits, columns), codes_OI)


def test_codes_are_packed_lowest_bit_first() -> None:
    # 3 bits each: 001, 010, 111 and 100 from the lowest bit up are 001 010 111 100 → bytes 11010001 and 1001.
    assert pack(torch.tensor([[1, 2, 7, 4]], dtype=torch.uint8), 3).tolist() == [[0b11010001, 0b1001]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon-alibi", "mixtral"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loader_gives_back_what_was_measured(
    recipe: str,
    family: str,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
) -> None:
    model = compress(tiny(family), RECIPES[recipe], tokens_NT)
    directory = written(model, tmp_path / "artifact")
    loaded = native.load(directory)
    assert loaded.dtype == model.storage_dtype
    assert not loaded.training
    for name in model.names:
        linear = model.quantized(name.removesuffix(".weight"))
        if linear is not None and linear.kind == "factors":
            found = loaded.get_submodule(name.removesuffix(".weight")).weight
            assert found.numel() > sum(part.numel() for part in linear.tensors.values())
            assert torch.allclose(found.float(), linear.dequantized().float(), rtol=0.02, atol=1e-3)
        else:
            assert torch.equal(loaded.get_parameter(name), model.tensor(name)), name
    in_float32 = native.load(directory, dtype=torch.float32)
    expected, _ = perplexity(model, tokens_NT, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        assert in_float32(input_ids=tokens_NT, labels=tokens_NT).loss.exp().item() == pytest.approx(expected, rel=2e-3)
        generated = loaded.generate(tokens_NT[:1, :5], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_are_saved_as_what_they_stand_for(
    family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = compress(tiny(family), RECIPES["factors"], tokens_NT)
    loaded = native.load(written(model, tmp_path / "artifact"))
    loaded.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.inference_mode():
        # Of the factors' product in 16 bits the model's own product in 16 bits is as good an answer.
        assert torch.allclose(
            again(tokens_NT).logits.float(),
            loaded(tokens_NT).logits.float(),
            atol=0.02 * loaded.config.hidden_size**0.5,
        )
    for name in model.names:
        assert torch.allclose(again.get_parameter(name).float(), model.tensor(name).float(), rtol=0.02, atol=1e-3), name


def test_a_run_claims_the_loader_and_no_other_runtime(tmp_path: Path) -> None:
    ordered = order(tmp_path, [{"method": "svd"}], runtimes=("transformers",))
    report = run(ordered, lambda _progress: None, lambda: False).report
    assert {proof.runtime: proof.loads for proof in report.runtimes} == {
        "native": True,
        "transformers": False,
        "vllm": False,
        "llama.cpp": False,
    }
    assert report.average_bits < 16 * 0.8
    assert report.artifact is not None
    assert report.runtimes[0].perplexity == pytest.approx(report.artifact.perplexity, rel=1e-3)


def test_transformers_refuses_it_instead_of_drawing_weights(artifact: tuple[CompressedModel, Path]) -> None:
    with pytest.raises(ValueError, match="quant_method"):
        AutoModelForCausalLM.from_pretrained(artifact[1])


def test_a_sharded_artifact_loads(
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files.write_weights, "__defaults__", (60_000,))
    model = compress(tiny("llama"), RECIPES["grid"], None)
    directory = written(model, tmp_path / "artifact")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(native.load(directory).get_parameter(name), model.tensor(name))


def edited(directory: Path, linears: dict[str, Any] | None = None, **changes: Any) -> None:
    """Change the block of config.json; of the linears, only those that are named."""
    config = json.loads((directory / "config.json").read_text())
    block = config["quantization_config"]
    config["quantization_config"] = block | {"linears": block["linears"] | (linears or {})} | changes
    (directory / "config.json").write_text(json.dumps(config))


def test_a_newer_layout_asks_for_an_upgrade(artifact: tuple[CompressedModel, Path]) -> None:
    edited(artifact[1], version=2, linears={"x": {"kind": "of a later day"}})
    with pytest.raises(ArtifactNewer, match="upgrade paredown"):
        native.load(artifact[1])


NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "another"}, "AutoModelForCausalLM"),
        ({"version": "one"}, "quantization_config.version"),
        ({"linears": {NAME: {"kind": "unknown"}}}, r"quantization_config\.linears"),
        ({"linears": {NAME: {"kind": "factors"}}}, "rank"),
        ({"linears": {"model.layers.9.mlp.up_proj": {"kind": "factors", "rank": 3}}}, "no linear layer of this model"),
        ({"linears": {NAME: {"kind": "factors", "rank": 3}}}, r"up_proj\.left is BF16"),
        ({"linears": {NAME: {"kind": "grid", "bits": 4, "group_size": 64, "symmetric": True}}}, r"no tensor .*\.codes"),
        ({"linears": {NAME: {"kind": "grid", "bits": 4, "group_size": 48, "symmetric": True}}}, "48 do not divide"),
        ({"quant_method": "gptq", "group_size": 0}, r"quantization_config\.group_size"),
    ],
)
def test_a_description_that_does_not_fit_the_files_is_named(
    artifact: tuple[CompressedModel, Path], changes: dict[str, Any], sentence: str
) -> None:
    edited(artifact[1], **changes)
    with pytest.raises(ArtifactDamaged, match=sentence):
        native.load(artifact[1])


def test_damaged_files_are_named(artifact: tuple[CompressedModel, Path]) -> None:
    weights = artifact[1] / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {f"{NAME}.left": tensors[f"{NAME}.left"].int()}, weights)
    with pytest.raises(ArtifactDamaged, match=r"up_proj\.left is I32"):
        native.load(artifact[1])
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(ArtifactDamaged, match="Download"):
        native.load(artifact[1])
    weights.unlink()
    with pytest.raises(ArtifactDamaged, match="no safetensors files"):
        native.load(artifact[1])
    (artifact[1] / "config.json").write_text("{")
    with pytest.raises(ArtifactDamaged, match=r"config\.json"):
        native.load(artifact[1])


def test_a_garbled_generation_config_is_named(artifact: tuple[CompressedModel, Path]) -> None:
    (artifact[1] / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactDamaged, match=r"generation_config\.json"):
        native.load(artifact[1])


@pytest.mark.parametrize(("recipe", "part"), [("codebooks", "positions"), ("mixed columns", "columns")])
def test_a_kept_weight_that_lies_in_no_row_is_named(
    recipe: str,
    part: str,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
) -> None:
    directory = written(compress(tiny("llama"), RECIPES[recipe], tokens_NT), tmp_path / "artifact")
    tensors = load_file(directory / "model.safetensors")
    places = tensors[f"{NAME}.{part}"]
    tensors[f"{NAME}.{part}"] = (places.int() + 64).to(places.dtype)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ArtifactDamaged, match=rf"up_proj, {part} lie beyond a row of 64"):
        native.load(directory)


def test_every_family_is_loaded_by_its_layers_names(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tmp_path: Path
) -> None:
    """Names in the files are those of checkpoints, which transformers changes while it loads some families."""
    for family in FAMILIES:
        model = compress(tiny(family), (Rtn(bits=8, group_size=32, scale_search="min_max"),), None, family)
        loaded = native.load(written(model, tmp_path / f"{family}-artifact"))
        name = f"{model.linear_names[-1]}.weight"
        assert torch.equal(loaded.get_parameter(name), model.tensor(name))
