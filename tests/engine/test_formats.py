"""Artifacts on disk, read back by plain transformers in a clean process that knows nothing of the engine."""

import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.engine.conftest import folded
from tests.engine.orders import config_of, save_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from paredown.contracts.families import MODEL_TYPES, shape_from_config
from paredown.contracts.job import Format
from paredown.contracts.recipes import Magnitude, Rtn, Stage
from paredown.core.sizes import output_bytes
from paredown.engine.data import load_tokenizer
from paredown.engine.errors import FormatRefused
from paredown.engine.formats import WRITERS, native
from paredown.engine.formats.compressed_tensors import packed
from paredown.engine.formats.files import write_companions, write_config, write_weights
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import open_model

# What a user would run. It imports nothing of ours.
RELOAD = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

for directory in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    AutoTokenizer.from_pretrained(directory)
    weights = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    with torch.inference_mode():
        logits = model.float()(torch.arange(48)[None] * 5 % 256).logits
    save_file({**weights, "logits": logits}, f"{directory}.reloaded")
assert not any(name.startswith("paredown") for name in sys.modules)
"""


@dataclass(frozen=True)
class Case:
    name: str
    config: PreTrainedConfig
    recipe: tuple[Stage, ...]
    format: Format
    dtype: torch.dtype = torch.bfloat16


def quantized(model_type: str, config: PreTrainedConfig, **settings: Any) -> Case:
    name = "-".join([model_type, *(f"{key}={value}" for key, value in settings.items())])
    return Case(name, config, (Rtn(**settings),), Format.COMPRESSED_TENSORS)


CASES = [
    *(
        quantized("llama", config_of("llama"), bits=bits, group_size=group_size, symmetric=symmetric)
        for bits in (3, 4, 8)
        for group_size in (32, None)
        for symmetric in (True, False)
    ),
    *(
        quantized("llama", config_of("llama"), bits=bits, group_size=group_size, symmetric=symmetric)
        for bits, group_size, symmetric in ((2, None, False), (5, 32, True), (6, 32, False))
    ),
    *(
        quantized(model_type, config_of(model_type, tied=tied), bits=4, group_size=64)
        for model_type, tied in (
            ("mistral", False),
            ("qwen2", True),
            ("qwen3", False),
            ("opt", True),
            ("opt-projected", True),
            ("gemma2", True),
            ("phi3", False),
            ("gpt_neox", False),
            ("bloom", True),
            ("falcon-new", False),
            ("mixtral", False),
            ("qwen2_moe", False),
        )
    ),
    *(
        quantized(model_type, config_of(model_type, tied=tied), bits=4, group_size=64, embeddings=8)
        for model_type, tied in (("llama", True), ("qwen3", False), ("opt-projected", True))
    ),
    Case("dense-embeddings", config_of("gpt2"), (Rtn(embeddings=8),), Format.SAFETENSORS),
    quantized("llama", config_of("llama", tied=False), bits=4, skip=("*.down_proj", "model.layers.0.*")),
    Case(
        "pruned-and-quantized",
        config_of("llama"),
        (Magnitude(), Rtn(group_size=32)),
        Format.COMPRESSED_TENSORS,
        torch.float16,
    ),
    *(
        Case(f"dense-{model_type}", config_of(model_type), (Magnitude(),), Format.SAFETENSORS, dtype)
        for model_type, dtype in zip(
            sorted(MODEL_TYPES), cycle([torch.bfloat16, torch.float16, torch.float32]), strict=False
        )
    ),
    Case("dense-quantized", config_of("gpt2", tied=False), (Rtn(bits=3),), Format.SAFETENSORS),
]


def compress(
    case_dir: Path, config: PreTrainedConfig, recipe: tuple[Stage, ...], dtype: torch.dtype
) -> CompressedModel:
    save_model(case_dir / "model", config, dtype=dtype)
    return compress_model(
        open_model(case_dir / "model"),
        recipe,
        None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        work_dir=case_dir / "work",
        identity="test",
        on_progress=lambda _done, _all: None,
        should_drain=lambda: False,
    )


def write(model: CompressedModel, output_format: Format, case_dir: Path) -> Path:
    directory = case_dir / "artifact"
    directory.mkdir()
    WRITERS[output_format](model, directory)
    write_companions(case_dir / "model", None, model.config, load_tokenizer(case_dir / "model", None), directory)
    return directory


@dataclass(frozen=True)
class Written:
    case: Case
    model: CompressedModel
    directory: Path
    reloaded: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Every case compressed and written here, and reloaded in one clean process."""
    root = tmp_path_factory.mktemp("formats")
    models = {case.name: compress(root / case.name, case.config, case.recipe, case.dtype) for case in CASES}
    directories = {case.name: write(models[case.name], case.format, root / case.name) for case in CASES}
    command = [sys.executable, "-W", "ignore", "-c", RELOAD, *map(str, directories.values())]
    environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HOME": str(root)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return {
        case.name: Written(
            case,
            models[case.name],
            directories[case.name],
            load_file(directories[case.name].with_name("artifact.reloaded")),
        )
        for case in CASES
    }


each_case = pytest.mark.parametrize("name", [case.name for case in CASES])


@each_case
def test_transformers_reads_back_exactly_the_weights_that_were_evaluated(
    artifacts: dict[str, Written], name: str
) -> None:
    written = artifacts[name]
    expected = folded({parameter: written.model.tensor(parameter) for parameter in written.model.names})
    assert set(expected) == set(written.reloaded) - {"logits"}
    for parameter, value in expected.items():
        assert written.reloaded[parameter].dtype == written.model.storage_dtype
        assert torch.equal(written.reloaded[parameter], value), parameter


@each_case
def test_the_reloaded_model_computes_what_the_dense_weights_compute(artifacts: dict[str, Written], name: str) -> None:
    written = artifacts[name]
    dense = MODEL_FOR_CAUSAL_LM_MAPPING[type(written.case.config)](written.case.config)
    dense.load_state_dict(folded({name: written.model.tensor(name) for name in written.model.names}), strict=False)
    dense.tie_weights()
    with torch.inference_mode():
        logits = dense.eval()(torch.arange(48)[None] * 5 % 256).logits
    assert logits.std() > 0.01, "logits that hardly differ would agree whatever the weights are"
    torch.testing.assert_close(written.reloaded["logits"], logits, rtol=1e-4, atol=1e-4)


@each_case
def test_compression_changed_the_weights(artifacts: dict[str, Written], name: str) -> None:
    written = artifacts[name]
    source = open_model(written.directory.parent / "model")
    changed = {
        linear
        for linear in written.model.linear_names
        if not torch.equal(
            source.tensor(f"{linear}.weight").to(written.model.storage_dtype), written.model.tensor(f"{linear}.weight")
        )
    }
    skipped = {linear for linear in written.model.linear_names if written.case.recipe[0].skip and is_skipped(linear)}
    assert changed == set(written.model.linear_names) - skipped


def is_skipped(linear: str) -> bool:
    return linear.endswith("down_proj") or linear.startswith("model.layers.0.")


def test_an_artifact_holds_its_files_and_nothing_half_written(artifacts: dict[str, Written]) -> None:
    for written in artifacts.values():
        assert {path.name for path in written.directory.iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in written.directory.iterdir())


def test_tied_weights_are_stored_once(artifacts: dict[str, Written]) -> None:
    for name, tied in (("dense-llama", True), ("dense-quantized", False)):
        with safe_open(artifacts[name].directory / "model.safetensors", "pt") as file:
            assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118  # not a dict


def test_names_in_the_files_are_those_of_checkpoints(artifacts: dict[str, Written]) -> None:
    """Other runtimes than transformers know no other."""
    with safe_open(artifacts["dense-gpt_neox"].directory / "model.safetensors", "pt") as file:
        assert "gpt_neox.layers.0.attention.dense.weight" in file.keys()  # noqa: SIM118  # not a dict
    name = "gpt_neox-bits=4-group_size=64"
    with safe_open(artifacts[name].directory / "model.safetensors", "pt") as file:
        assert "embed_out.weight" in file.keys()  # noqa: SIM118
    with safe_open(artifacts["dense-mixtral"].directory / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {
            "model.layers.1.block_sparse_moe.gate.weight",
            "model.layers.1.block_sparse_moe.experts.3.w2.weight",
        } < names
        assert not any(".mlp." in name for name in names)
    mixture = json.loads((artifacts["mixtral-bits=4-group_size=64"].directory / "config.json").read_text())
    assert "model.layers.1.block_sparse_moe.gate" in mixture["quantization_config"]["ignore"]
    config = json.loads((artifacts[name].directory / "config.json").read_text())
    assert set(config["quantization_config"]["ignore"]) == {"lm_head", "embed_out"}


def test_embeddings_and_head_are_stored_in_eight_bits_where_asked(artifacts: dict[str, Written]) -> None:
    for name in ("llama-bits=4-group_size=64-embeddings=8", "qwen3-bits=4-group_size=64-embeddings=8"):
        source = open_model(artifacts[name].directory.parent / "model")
        with safe_open(artifacts[name].directory / "model.safetensors", "pt") as file:
            eight_bit = {key for key in file.keys() if file.get_slice(key).get_dtype() == "F8_E4M3"}  # noqa: SIM118
        head = set() if name.startswith("llama") else {"lm_head.weight"}
        assert eight_bit == {"model.embed_tokens.weight"} | head
        for parameter in eight_bit:
            before, after = source.tensor(parameter).float(), artifacts[name].reloaded[parameter].float()
            assert 0 < float((after - before).norm() / before.norm()) < 0.04


@pytest.mark.parametrize(("initial", "number_type"), [(0.02, "F8_E4M3"), (0.002, "F8_E5M2")])
def test_embeddings_of_small_numbers_get_more_exponent(tmp_path: Path, initial: float, number_type: str) -> None:
    """In the other type a third of the smaller ones would be lost."""
    config = config_of("llama")
    config.initializer_range = initial
    model = compress(tmp_path, config, (Rtn(embeddings=8),), torch.bfloat16)
    directory = write(model, Format.COMPRESSED_TENSORS, tmp_path)
    name = "model.embed_tokens.weight"
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.get_slice(name).get_dtype() == number_type
    before, after = open_model(tmp_path / "model").tensor(name).float(), model.tensor(name)
    assert float((after.float() - before).norm() / before.norm()) < 0.06
    reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert torch.equal(reloaded.get_parameter(name), after)
    (tmp_path / "native").mkdir()
    WRITERS[Format.NATIVE](model, tmp_path / "native")
    own = native.load(tmp_path / "native")
    assert torch.equal(own.get_parameter(name), after)


def test_config_says_how_the_weights_are_packed(artifacts: dict[str, Written]) -> None:
    name = "llama-bits=4-skip=('*.down_proj', 'model.layers.0.*')"
    config = json.loads((artifacts[name].directory / "config.json").read_text())

    quantization = config["quantization_config"]
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    assert quantization["config_groups"]["group_0"]["weights"] == {
        "dynamic": False,
        "group_size": 64,
        "num_bits": 4,
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    skipped = {linear for linear in artifacts[name].model.linear_names if is_skipped(linear)}
    assert set(quantization["ignore"]) == skipped | {"lm_head"}


@pytest.mark.parametrize("output_format", [Format.COMPRESSED_TENSORS, Format.SAFETENSORS])
@pytest.mark.parametrize(
    "stage",
    [
        Rtn(bits=2, group_size=32, symmetric=False),
        Rtn(bits=3, group_size=32),
        Rtn(bits=4, group_size=64, symmetric=False, embeddings=8),
        Rtn(bits=5, group_size=64),
        Rtn(bits=8, group_size=None),
    ],
    ids=lambda stage: f"{stage.bits} bits",
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "opt"])
def test_size_is_what_the_plan_foretold(tmp_path: Path, model_type: str, stage: Rtn, output_format: Format) -> None:
    config = config_of(model_type, hidden=128)
    model = compress(tmp_path, config, (stage.model_copy(update={"scale_search": "min_max"}),), torch.bfloat16)
    (tmp_path / "artifact").mkdir()

    size_bytes = WRITERS[output_format](model, tmp_path / "artifact")

    assert size_bytes == (tmp_path / "artifact" / "model.safetensors").stat().st_size
    planned = output_bytes(shape_from_config(config.to_dict()), (stage,), output_format)
    assert abs(size_bytes / planned - 1) < 0.02


def test_codes_are_packed_as_the_method_left_them() -> None:
    """Quantizing the rounded dense weight again would move codes: 200 × a bfloat16 scale is not exact in bfloat16."""
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    for symmetric, dtype, low in ((True, torch.int8, -128), (False, torch.uint8, 0)):
        codes_OI = torch.arange(low, low + 256).to(dtype).repeat(4, 1)
        zeros_OG = None if symmetric else torch.tensor([[3], [0], [255], [7]], dtype=torch.uint8)
        scales_OG = torch.tensor([[0.0123], [0.7], [1.3], [3e-3]]).bfloat16()
        linear = QuantizedLinear(codes_OI, scales_OG, zeros_OG, bits=8, group_size=None, symmetric=symmetric)

        tensors = packed(linear)

        unpacked = unpack_from_int32(tensors["weight_packed"], 8, codes_OI.shape).int()
        assert torch.equal(unpacked + (0 if symmetric else 128), codes_OI.int())
        if zeros_OG is not None:
            zeros = unpack_from_int32(tensors["weight_zero_point"], 8, zeros_OG.shape, packed_dim=0).int()
            assert torch.equal(zeros + 128, zeros_OG.int())


def test_large_models_are_split_into_shards_with_an_index(tmp_path: Path) -> None:
    tensors = {f"layer.{index}.weight": torch.full((10, 10), float(index)) for index in range(7)}

    size_bytes = write_weights(tensors.items(), tmp_path, max_shard_bytes=900)

    names = [f"model-{index:05d}-of-00004.safetensors" for index in range(1, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    assert size_bytes == sum((tmp_path / name).stat().st_size for name in names)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 7 * 400}
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_transformers_reads_a_sharded_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paredown.engine.formats import files

    monkeypatch.setattr(files.write_weights, "__defaults__", (30_000,))
    model = compress(tmp_path, config_of("llama"), (Rtn(group_size=32),), torch.bfloat16)
    directory = write(model, Format.COMPRESSED_TENSORS, tmp_path)

    assert len(list(directory.glob("model-*.safetensors"))) == 3
    reopened = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)].from_pretrained(directory)
    for name, parameter in reopened.named_parameters():
        assert torch.equal(parameter.data, model.tensor(name))


def test_gpt2_is_refused_for_its_conv1d(tmp_path: Path) -> None:
    model = compress(tmp_path, config_of("gpt2"), (Rtn(),), torch.bfloat16)

    with pytest.raises(FormatRefused, match="Conv1D") as caught:
        WRITERS[Format.COMPRESSED_TENSORS](model, tmp_path)
    assert caught.value.field == "format"


@pytest.mark.parametrize("stage", [Rtn(symmetric=False), Rtn(skip=("*.experts.1.*",))], ids=["asymmetric", "skip"])
def test_experts_that_transformers_could_not_join_are_refused(tmp_path: Path, stage: Rtn) -> None:
    model = compress(tmp_path, config_of("olmoe"), (stage,), torch.bfloat16)

    with pytest.raises(FormatRefused, match="only if all are quantized symmetrically") as caught:
        WRITERS[Format.COMPRESSED_TENSORS](model, tmp_path)
    assert caught.value.field == "format"


def test_a_model_of_which_nothing_was_quantized_is_refused(tmp_path: Path) -> None:
    model = compress(tmp_path, config_of("llama"), (Rtn(skip=("*",)),), torch.bfloat16)

    with pytest.raises(FormatRefused, match="No linear layer was quantized"):
        WRITERS[Format.COMPRESSED_TENSORS](model, tmp_path)


def test_code_and_foreign_files_beside_the_model_stay_behind(tmp_path: Path) -> None:
    model_dir = save_model(tmp_path / "model", config_of("llama"))
    (model_dir / "modeling_evil.py").write_text("raise SystemExit")
    save_file({"x": torch.zeros(1)}, model_dir / "adapter.safetensors")
    (tmp_path / "artifact").mkdir()

    write_companions(model_dir, None, config_of("llama"), load_tokenizer(model_dir, None), tmp_path / "artifact")

    assert {path.name for path in (tmp_path / "artifact").iterdir()} == {
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("model_type", "fields", "earlier"),
    [
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        (
            "llama",
            {"rope_parameters": LLAMA_3 | {"original_max_position_embeddings": 64}},
            {"rope_theta": 5e5, "rope_scaling.rope_type": "llama3", "rope_scaling.factor": 8.0},
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling.factor": 8.0},
        ),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5}},
            {"rotary_emb_base": 5e4, "rotary_pct": 0.5},
        ),
        (
            "phi3",
            {
                "rope_parameters": LONG | {"partial_rotary_factor": 1.0},
                "original_max_position_embeddings": 64,
                "max_position_embeddings": 128,
            },
            {"rope_theta": 1e4, "rope_scaling.type": "longrope", "rope_scaling.long_factor": [2.0] * 48},
        ),
        ("opt", {"_remove_final_layer_norm": True}, {"_remove_final_layer_norm": True}),
    ],
)
def test_config_tells_readers_of_every_age_the_same(
    tmp_path: Path, model_type: str, fields: dict[str, Any], earlier: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(model_type, pad_token_id=0, **fields)
    write_config(config, "bfloat16", tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"
    for name, value in earlier.items():
        found: Any = written
        for part in name.split("."):
            found = found[part]
        assert found == value, name
    read = AutoConfig.from_pretrained(tmp_path)
    given, back = (getattr(one, "rope_parameters", None) or {} for one in (config, read))
    assert {name: value for name, value in back.items() if name != "type"} == given
    assert read.dtype == torch.bfloat16
    assert getattr(read, "_remove_final_layer_norm", None) == getattr(config, "_remove_final_layer_norm", None)
