"""GGUF files: packed as the method left the codes, read back as what was measured, and run by llama.cpp itself."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, dequantize
from safetensors.torch import load_file, save_file
from tests.engine.orders import config_of, order, save_model, write_order
from transformers import LlamaConfig, PreTrainedConfig

from paredown.contracts.families import shape_from_config
from paredown.contracts.job import EvaluationSettings, Format
from paredown.contracts.recipes import Gptq, LlmPruner, Magnitude, Mixed, Rtn, ShortGpt, Stage, UniformGrid
from paredown.contracts.report import RuntimeProof
from paredown.contracts.work import ENGINE_MESSAGE, EngineResult, EngineStarted, Origin
from paredown.core.sizes import output_bytes
from paredown.engine import llama_cpp
from paredown.engine.errors import FormatRefused, RuntimeDisagrees
from paredown.engine.formats import gguf, gguf_blocks, gguf_vocabulary
from paredown.engine.gguf_reader import GgufWeights, HeaderReader
from paredown.engine.grid import nearest
from paredown.engine.inputs import read_inputs
from paredown.engine.llama_cpp import LlamaCppProcess
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.run import run
from paredown.engine.runtimes import RuntimeFailed
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import open_model

TYPES = ["llama", "mistral", "qwen2", "qwen3", "gpt2"]
Q4_1 = Rtn(group_size=32, symmetric=False)
RECIPES: dict[str, tuple[Stage, ...]] = {
    "Q4_0": (Rtn(group_size=32, scale_search="min_max"),),
    "Q4_1": (Q4_1,),
    "Q8_0": (Rtn(bits=8, group_size=32, scale_search="min_max", skip=("*.0.*",)),),
    "Q5_0": (Rtn(bits=5, group_size=32, scale_search="min_max"),),
    "Q5_1": (Rtn(bits=5, group_size=32, symmetric=False, scale_search="min_max"),),
    "BF16": (Magnitude(pattern="2:4"),),
    "Q2_K": (Rtn(bits=2, k_quant=True),),
    "Q3_K": (Magnitude(), Rtn(bits=3, k_quant=True)),
    "Q4_K": (Rtn(k_quant=True, scale_search="min_max"),),
    "Q5_K": (Rtn(bits=5, k_quant=True, skip=("*.0.*",)),),
    "Q6_K": (Rtn(bits=6, k_quant=True),),
}


def save(directory: Path, config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model whose answers hang on every part of it: sharp attention, sharp logits, and a tokenizer that merges."""
    save_model(directory, config, dtype=dtype)
    tensors = load_file(directory / "model.safetensors")
    # A wider model's random weights add up to more.
    factor = 5 * (64 / config.hidden_size) ** 0.5
    for name, tensor in tensors.items():
        if name in ("model.norm.weight", "transformer.ln_f.weight"):
            tensor *= factor
        if name.endswith(("q_proj.weight", "k_proj.weight", "c_attn.weight")):
            tensor *= factor
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    change_tokenizer(directory, lambda tokenizer: add_merges(tokenizer["model"]))
    return directory


def change_tokenizer(directory: Path, change: Any) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))


def add_merges(model: dict[str, Any]) -> None:
    for left, right in (("t", "h"), ("th", "e"), ("Ġ", "a"), ("3", "3")):
        model["vocab"][left + right] = len(model["vocab"])
        model["merges"].append([left, right])


def compress(root: Path, recipe: tuple[Stage, ...], tokens_NT: torch.Tensor | None = None) -> CompressedModel:
    return compress_model(
        gguf.prepared(open_model(root / "model"), recipe),  # type: ignore[arg-type]  # stages of the union
        recipe,
        tokens_NT,
        device=torch.device("cpu"),
        dtype=torch.float32,
        work_dir=root / "work",
        identity="test",
        on_progress=lambda _done, _all: None,
        should_drain=lambda: False,
    )


def write(root: Path, model: CompressedModel) -> Path:
    (root / "out").mkdir()
    gguf.write(model, root / "out")
    return root / "out" / "model.gguf"


def test_headers_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(["a", "é", "", "longer than others"])
    writer.add_token_scores([0.5, -1.0, 0.0, 2.0])
    writer.add_rope_scaling_finetuned(True)
    writer.add_uint64("large", 2**40)
    writer.add_tensor("token_embd.weight", np.arange(8, dtype=np.float32).reshape(4, 2))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()

    ours, package = HeaderReader(path), GGUFReader(path)

    assert {name: field.contents() for name, field in ours.fields.items()} == {
        name: field.contents() for name, field in package.fields.items()
    }
    [tensor], [expected] = ours.tensors, package.tensors
    assert (tensor.name, tensor.data_offset) == (expected.name, expected.data_offset)
    assert np.array_equal(tensor.data, expected.data)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="buffer"):
        HeaderReader(path)


@pytest.mark.parametrize(
    ("kind", "bits", "symmetric"),
    [("Q4_0", 4, True), ("Q4_1", 4, False), ("Q5_0", 5, True), ("Q5_1", 5, False), ("Q8_0", 8, True)],
)
def test_blocks_hold_the_codes_and_give_back_what_was_measured(kind: str, bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    low = -(2 ** (bits - 1)) if symmetric else 0
    codes_OI = torch.randint(low, low + 2**bits, (7, 96), generator=generator)
    linear = QuantizedLinear(
        codes_OI.to(torch.int8 if symmetric else torch.uint8),
        (torch.rand(7, 3, generator=generator) + 1e-3).half(),
        None if symmetric else torch.randint(0, 2**bits, (7, 3), generator=generator).to(torch.uint8),
        bits,
        32,
        symmetric,
        wide=True,
    )

    read = dequantize(gguf_blocks.packed(linear), GGMLQuantizationType[kind])

    assert np.array_equal(read, linear.dequantized().numpy())
    assert linear.stored_bits == gguf_blocks.packed(linear).size * 8 / codes_OI.numel()


def hard_rows() -> torch.Tensor:
    """Rows of a layer among which some have groups or blocks of zeros, of tiny weights, or of one sign."""
    weight_OI = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    weight_OI[0], weight_OI[1, 256:], weight_OI[2, 300:320] = 0, 0, 0
    weight_OI[3] *= 1e-9
    weight_OI[4, :16] *= 1e-4
    # Their scales are below float16's normal numbers, or their super-scales below its smallest.
    weight_OI[8] *= 1e-5
    weight_OI[9], weight_OI[10, 256:] = weight_OI[9] * 1e-6, weight_OI[10, 256:] * 3e-6
    weight_OI[5], weight_OI[6] = weight_OI[5].abs(), -weight_OI[6].abs()
    weight_OI[7, 40] = 10
    return weight_OI


@pytest.mark.parametrize("scale_search", ["least_squares", "min_max"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_super_blocks_hold_the_codes_and_give_back_what_was_measured(bits: Any, scale_search: Any) -> None:
    stage = Rtn(bits=bits, k_quant=True, scale_search=scale_search).for_width(512)
    linear = nearest(hard_rows(), stage, torch.float16, "layer")

    blocks = gguf_blocks.packed(linear)

    measured_OI = linear.dequantized()
    assert np.array_equal(dequantize(blocks, GGMLQuantizationType[f"Q{bits}_K"]), measured_OI.numpy())
    assert linear.stored_bits == blocks.size * 8 / measured_OI.numel()
    assert bool(measured_OI.isfinite().all())
    assert not measured_OI[0].any()
    # Of numbers as these are, 2^bits points lose about this share; of those near float16's smallest number, more.
    lost_OB = (measured_OI - hard_rows()).view(64, 2, 256).norm(dim=2) / hard_rows().view(64, 2, 256).norm(dim=2)
    assert {row for row, lost_B in enumerate(lost_OB) if not (lost_B < 2.0**-bits * 2).all()} - {9, 10} == {0, 1, 3}
    assert float(lost_OB[[3, 9, 10]].max()) <= 1, "worse than zeros"


@pytest.mark.parametrize(
    ("bits", "symmetric", "fewer_bits", "share"), [(4, True, 0, 0.9), (5, True, 0, 0.9), (4, False, 0.5, 1.03)]
)
def test_super_blocks_lose_less_or_take_fewer_bits(bits: Any, symmetric: bool, fewer_bits: float, share: float) -> None:
    weight_OI = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    grid = Rtn(bits=bits, group_size=32, symmetric=symmetric)
    plain = nearest(weight_OI, grid, torch.float16, "layer", wide=True)
    coded = nearest(weight_OI, Rtn(bits=bits, k_quant=True).for_width(512), torch.float16, "layer")

    assert coded.stored_bits == plain.stored_bits - fewer_bits
    assert (coded.dequantized() - weight_OI).norm() < share * (plain.dequantized() - weight_OI).norm()


def test_a_minimum_of_its_own_loses_less_than_a_zero_point() -> None:
    weight_OI = torch.randn(64, 512, generator=torch.Generator().manual_seed(5))
    error = {
        wide: float((nearest(weight_OI, Q4_1, torch.float16, "layer", wide=wide).dequantized() - weight_OI).norm())
        for wide in (False, True)
    }
    assert error[True] < 0.95 * error[False]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_scales_of_super_blocks_are_searched_by_the_channels_importance(bits: Any) -> None:
    weight_OI = torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    importance_I = torch.rand(512, generator=torch.Generator().manual_seed(4)) ** 4 + 0.01

    def error(scale_search: Any, weighed: bool) -> float:
        stage = Rtn(bits=bits, k_quant=True, scale_search=scale_search).for_width(512)
        linear = nearest(weight_OI, stage, torch.float16, "layer", importance_I if weighed else None)
        return float(((linear.dequantized() - weight_OI).square() * importance_I).sum())

    assert error("least_squares", True) < 0.99 * error("least_squares", False) < error("min_max", False)


@pytest.mark.parametrize(
    ("bits", "kind"), [(4, "Q4_1"), (5, "Q5_0"), (8, "Q8_0"), (4, "Q4_K"), (5, "Q5_K"), (6, "Q6_K")]
)
def test_embeddings_take_the_bits_that_the_recipe_gives_them(tmp_path: Path, bits: Any, kind: str) -> None:
    coded = kind.endswith("_K")
    save(tmp_path / "model", config_of("llama", hidden=256 if coded else 64, tied=True))
    more: Any = {"k_quant": True} if coded else {"group_size": 32}
    model = compress(tmp_path, (Rtn(scale_search="min_max", embeddings=bits, **more),))

    path = write(tmp_path, model)

    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    name = "model.embed_tokens.weight"
    read = GgufWeights(path, model.config, model.shapes).tensor(name).float()
    whole = model.source.tensor(name).float()
    assert kinds["token_embd.weight"] == kind
    assert torch.equal(read, model.tensor(name).float())
    # Of numbers as these are, a grid of 2^bits points loses about this share.
    assert (read - whole).norm() / whole.norm() < 2.0**-bits * 1.7


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_s_errors_count_as_the_last_norm_makes_them(tmp_path: Path, tied: bool) -> None:
    save(tmp_path / "model", config_of("llama", tied=tied))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    loud_I = torch.arange(len(tensors["model.norm.weight"])) % 4 == 0
    tensors["model.norm.weight"] = torch.where(loud_I, 8.0, 0.25).to(torch.bfloat16)
    save_file(tensors, path, {"format": "pt"})
    files = open_model(tmp_path / "model")
    code = gguf.Embeddings(files, GGMLQuantizationType.Q4_1)

    def error(name: str, coded_as: str, scale_I: torch.Tensor) -> float:
        whole = files.tensor(name)
        return float(((code(coded_as, whole) - whole.float()) * scale_I).norm())

    norm_I, even_I = tensors["model.norm.weight"].float(), torch.tensor(1.0)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert error(head, head, norm_I) < 0.98 * error(head, "another", norm_I)
    assert error(head, head, even_I) > error(head, "another", even_I), "other channels pay for it"
    if not tied:
        embedding = "model.embed_tokens.weight"
        assert error(embedding, embedding, even_I) == error(embedding, "another", even_I), "no norm comes after it"


def test_a_block_of_q4_0_by_hand() -> None:
    """Scale 0.5 is 0x3800; weight i and weight i + 16 share a byte, the earlier one below."""
    codes_OI = torch.tensor([[-8, 7, *[0] * 14, 1, -1, *[0] * 14]], dtype=torch.int8)
    linear = QuantizedLinear(codes_OI, torch.tensor([[0.5]]).half(), None, 4, 32, True, wide=True)

    assert gguf_blocks.packed(linear).tobytes() == bytes([0x00, 0x38, 0x90, 0x7F, *[0x88] * 14])


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [*(("llama", kind) for kind in RECIPES), *((other, "Q4_0") for other in TYPES[1:]), ("gpt2", "BF16")],
)
def test_the_file_gives_back_exactly_what_was_measured(tmp_path: Path, model_type: str, kind: str) -> None:
    config = config_of(model_type, hidden=256 if kind.endswith("_K") else 64, tied=kind != "Q4_1")
    save(tmp_path / "model", config, torch.float16 if kind == "Q4_1" else torch.bfloat16)
    model = compress(tmp_path, RECIPES[kind])

    path = write(tmp_path, model)

    reader = GgufWeights(path, model.config, model.shapes)
    for name in model.names:
        assert torch.equal(reader.tensor(name).float(), model.tensor(name).float()), name
    file = GGUFReader(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    if not RECIPES[kind][-1].skip:
        said = LlamaFileType(file.fields["general.file_type"].contents()).name
        assert said == f"MOSTLY_{kind}" + ("_S" if kind in ("Q3_K", "Q4_K") else "")
    dense = "F16" if kind == "Q4_1" else "BF16"
    for linear in model.linear_names:
        name = gguf.Names(model.config)(f"{linear}.weight")
        assert kinds[name] == (kind if kind == "BF16" or model.quantized(linear) else dense)
    assert kinds["token_embd.weight"] == ("BF16" if kind == "BF16" else "Q8_0")
    assert kinds["output_norm.weight"] == "F32"
    assert ("output.weight" in kinds) is (kind == "Q4_1"), "a tied head is stored once"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("model_type", "kind", "hidden"),
    [
        ("llama", "Q4_0", 256),
        ("llama", "BF16", 256),
        ("qwen2", "Q4_1", 256),
        ("gpt2", "Q4_0", 256),
        ("llama", "Q3_K", 256),
        ("llama", "Q6_K", 128),
    ],
)
def test_size_is_what_the_plan_foretold(tmp_path: Path, model_type: str, kind: str, hidden: int) -> None:
    save(tmp_path / "model", config_of(model_type, hidden=hidden, blocks=4))
    model = compress(tmp_path, RECIPES[kind])

    size_bytes = write(tmp_path, model).stat().st_size

    planned = output_bytes(shape_from_config(model.config.to_dict()), RECIPES[kind], Format.GGUF)
    assert abs(size_bytes / planned - 1) < 0.02


@pytest.mark.parametrize(
    ("stage", "hidden"),
    [
        (Mixed(average_bits=5.75, choices=(4, 5, 8), group_size=32, scale_search="min_max"), 128),
        (Mixed(average_bits=4, choices=(2, 3, 4, 6), k_quant=True), 256),
        # Layers of 128 channels have no super-blocks.
        (Mixed(average_bits=5, choices=(3, 5, 6), k_quant=True), 128),
    ],
)
def test_layers_of_several_widths_lie_in_one_file_as_measured(tmp_path: Path, stage: Mixed, hidden: int) -> None:
    """Each in its own type, within a budget that counts GGUF's scales, and as large as planned."""
    save(tmp_path / "model", config_of("llama", hidden=hidden, blocks=4))
    recipe = (stage,)
    model = compress(tmp_path, recipe, torch.arange(64).reshape(2, 32))

    path = write(tmp_path, model)

    blocks = [tensor for tensor in GGUFReader(path).tensors if tensor.name.startswith("blk.") and len(tensor.shape) > 1]
    assert len({tensor.tensor_type.name for tensor in blocks}) > 1
    weights = sum(int(tensor.n_elements) for tensor in blocks)
    used = 8 * sum(int(tensor.n_bytes) for tensor in blocks) / weights
    assert stage.average_bits - 0.25 < used <= stage.average_bits
    reader = GgufWeights(path, model.config, model.shapes)
    for name in model.names:
        assert torch.equal(reader.tensor(name).float(), model.tensor(name).float()), name
    planned = output_bytes(shape_from_config(model.config.to_dict()), recipe, Format.GGUF)
    assert abs(path.stat().st_size / planned - 1) < 0.02


def test_a_shorter_model_lists_fewer_blocks(tmp_path: Path) -> None:
    """The tokenizer still is the source's; a GGUF of what was kept reads back as it was measured."""
    save(tmp_path / "model", config_of("llama", blocks=3))
    tokens_NT = torch.arange(64).reshape(2, 32)
    model = compress(tmp_path, (ShortGpt(blocks=1), Rtn(group_size=32, scale_search="min_max")), tokens_NT)

    path = write(tmp_path, model)

    fields = GGUFReader(path).fields
    assert fields["llama.block_count"].contents() == 2
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    reader = GgufWeights(path, model.config, model.shapes)
    for name in model.names:
        assert torch.equal(reader.tensor(name).float(), model.tensor(name).float()), name


def prove(root: Path, stage: Stage, config: PreTrainedConfig, **changes: Any) -> RuntimeProof:
    save(root / "model", config)
    asked = order(root, [stage.identity()], format="gguf", runtimes=("llama.cpp",), **changes)
    report = run(asked, lambda _progress: None, lambda: False).report
    assert [proof.runtime for proof in report.runtimes] == ["llama.cpp", "transformers", "vllm"]
    [proof, *others] = report.runtimes
    assert proof.loads
    assert not any(other.loads for other in others)
    assert report.artifact is not None
    assert proof.perplexity == pytest.approx(report.artifact.perplexity, rel=0.02)
    return proof


needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel for this platform"
)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("model_type", "stage"),
    [
        ("llama", Gptq(group_size=32)),
        ("mistral", Gptq(group_size=32, symmetric=False)),
        ("qwen2", Rtn(bits=5, group_size=32)),
        ("qwen3", Rtn(bits=5, group_size=32, symmetric=False)),
        ("gpt2", Rtn(bits=8, group_size=32, skip=("*.mlp.*",))),
        ("llama", LlmPruner(mlp_share=0.5, head_groups=1)),
        ("qwen2", LlmPruner(mlp_share=0.5)),
        ("qwen3", LlmPruner(head_groups=1)),
        ("llama", Mixed(average_bits=5.75, choices=(4, 5, 8), group_size=32)),
        ("llama", Gptq(k_quant=True)),
        ("mistral", Gptq(bits=6, k_quant=True)),
        ("qwen2", Gptq(bits=5, k_quant=True)),
        ("qwen3", Gptq(bits=3, k_quant=True, activation_order=False)),
        ("gpt2", Gptq(bits=2, k_quant=True)),
        ("llama", Mixed(average_bits=4, choices=(2, 3, 4, 6), k_quant=True)),
    ],
)
def test_llama_cpp_runs_it_and_measures_the_same(tmp_path: Path, model_type: str, stage: Stage) -> None:
    hidden = 256 if isinstance(stage, UniformGrid) and stage.k_quant else 64
    proof = prove(tmp_path, stage, config_of(model_type, hidden=hidden))

    assert proof.sample
    assert proof.version.startswith("xllamacpp 20")


@needs_llama_cpp
def test_speed_is_measured_in_llama_cpp_beside_the_base_in_16_bits(tmp_path: Path) -> None:
    save(tmp_path / "model", config_of("llama"))
    settings = EvaluationSettings(samples=2, sequence_length=64, speed=True)
    recipe = [{"method": "rtn", "group_size": 32}]
    asked = order(tmp_path, recipe, format="gguf", runtimes=("llama.cpp",), evaluation=settings)

    report = run(asked, lambda _progress: None, lambda: False).report

    assert set(report.speeds) == set(report.generations) == {"base", "artifact"}
    for figures in report.speeds.values():
        assert figures.runtime == f"llama.cpp {report.runtimes[0].version}"
        assert figures.device == "cpu"
        assert min(figures.prefill_tokens_per_second, figures.decode_tokens_per_second) > 0
    # Of an artifact's artifact the base is not at hand, and what it was made of must not stand in for it.
    origin = Origin(base_bytes=10**6, pruned=False, baseline_required=False)
    places = {"output_dir": tmp_path / "out-2", "work_dir": tmp_path / "work-2"}
    report = run(asked.model_copy(update={"origin": origin, **places}), lambda _progress: None, lambda: False).report
    assert set(report.speeds) == {"artifact"}


def cut_by(tokenizer: dict[str, Any], rule: str) -> None:
    """Let a tokenizer normalize and cut text by one of the rules that llama.cpp has a name for."""
    normalizer, steps = next(key for key, name in gguf_vocabulary._CUTTING.items() if name == rule)
    cutting = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step[1]}
        if step[0] == "ByteLevel"
        else {"type": "Digits", "individual_digits": True}
        if step[0] == "Digits"
        else {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": "Isolated", "invert": False}
        for step in steps
    ]
    tokenizer["normalizer"] = {"type": normalizer} if normalizer else None
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": cutting}


@needs_llama_cpp
@pytest.mark.parametrize("rule", ["smollm", "llama-bpe", "tekken", "qwen2"])
def test_llama_cpp_cuts_text_as_each_known_rule_does(tmp_path: Path, rule: str) -> None:
    """The proof compares the tokens; here every merge that a wrong rule would allow is in the vocabulary."""

    def change(tokenizer: dict[str, Any]) -> None:
        cut_by(tokenizer, rule)
        for left, right in (
            ("33", "3"),
            ("333", "3"),
            ("'", "R"),
            ("'R", "E"),
            ("Ġ", "Ġ"),
            ("Ċ", "Ċ"),
            ("Ċ", "Ġ"),
            ("/", "/"),
        ):
            tokenizer["model"]["vocab"][left + right] = len(tokenizer["model"]["vocab"])
            tokenizer["model"]["merges"].append([left, right])

    config = config_of("llama")
    config.vocab_size = 300
    save(tmp_path / "model", config)
    change_tokenizer(tmp_path / "model", change)
    asked = order(tmp_path, [{"method": "magnitude"}], format="gguf", runtimes=("llama.cpp",), evaluation=None)

    [proof, *_] = run(asked, lambda _progress: None, lambda: False).report.runtimes

    assert proof.loads
    assert GGUFReader(tmp_path / "out" / "model.gguf").fields["tokenizer.ggml.pre"].contents() == rule


@needs_llama_cpp
@pytest.mark.parametrize(("begins", "ends"), [(True, False), (False, True), (False, False)])
def test_llama_cpp_begins_and_ends_a_text_as_the_tokenizer_does(tmp_path: Path, begins: bool, ends: bool) -> None:
    """It would begin those of this rule with a token where the file is silent."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {"SpecialToken": {"id": "<mark>", "type_id": 0}}

    def change(tokenizer: dict[str, Any]) -> None:
        mark_id = len(tokenizer["model"]["vocab"])
        tokenizer["added_tokens"] = [
            {"id": mark_id, "content": "<mark>", "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        ]
        cut_by(tokenizer, "llama-bpe")
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*([mark] if begins else []), text, *([mark] if ends else [])],
            "pair": [text, text],
            "special_tokens": {"<mark>": {"id": "<mark>", "ids": [mark_id], "tokens": ["<mark>"]}},
        }

    config = config_of("llama")
    config.vocab_size = 300
    save(tmp_path / "model", config)
    change_tokenizer(tmp_path / "model", change)
    settings_path = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text()) if settings_path.exists() else {}
    settings_path.write_text(json.dumps(settings | {"bos_token": "<mark>", "eos_token": "<mark>"}))
    asked = order(tmp_path, [{"method": "magnitude"}], format="gguf", runtimes=("llama.cpp",), evaluation=None)

    [proof, *_] = run(asked, lambda _progress: None, lambda: False).report.runtimes

    assert proof.loads
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    added = [fields[f"tokenizer.ggml.add_{end}_token"].contents() for end in ("bos", "eos")]
    assert added == [begins, ends]


@needs_llama_cpp
@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_travels_as_scores(tmp_path: Path, prefix: bool) -> None:
    config = config_of("llama")
    config.vocab_size = 320
    save(tmp_path / "model", config)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefhinorstuwyEIRW'3."]
    merges = [("h", "e"), ("r", "e"), ("▁", "h"), ("▁h", "e"), ("▁", "he"), ("he", "re"), ("▁", "▁"), ("o", "u")]
    pieces += dict.fromkeys("".join(pair) for pair in merges)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": pieces[index], "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for index in range(3)
        ],
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": merges,
        },
    }
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": prefix, "legacy": False}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    asked = order(tmp_path, [{"method": "magnitude"}], format="gguf", runtimes=("llama.cpp",), evaluation=None)

    [proof, *_] = run(asked, lambda _progress: None, lambda: False).report.runtimes

    assert proof.loads
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is prefix


@needs_llama_cpp
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_llama_cpp_turns_queries_and_keys_as_far_as_transformers(tmp_path: Path, rope: dict[str, Any]) -> None:
    scaled = rope | {"rope_theta": 500.0, "original_max_position_embeddings": 16}
    config = config_of("llama").to_dict() | {"rope_parameters": scaled}

    prove(tmp_path, Magnitude(sparsity=0.1), LlamaConfig.from_dict(config))


@needs_llama_cpp
def test_an_engine_without_a_network_proves_it_too(tmp_path: Path) -> None:
    save(tmp_path / "model", config_of("llama"))
    asked = order(tmp_path, [{"method": "rtn", "group_size": 32}], format="gguf", runtimes=("llama.cpp",))
    engine = subprocess.Popen(
        [sys.executable, "-P", "-m", "paredown.engine", str(write_order(asked, tmp_path / "order.json"))],
        stdin=subprocess.PIPE,  # held open: the engine ends with it
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    with engine:
        assert engine.stdout is not None
        messages = [ENGINE_MESSAGE.validate_json(line) for line in engine.stdout]

    [started] = [message for message in messages if isinstance(message, EngineStarted)]
    assert started.isolation.no_network
    result = messages[-1]
    assert isinstance(result, EngineResult)
    assert result.report.runtimes[0].runtime == "llama.cpp"
    assert result.report.runtimes[0].loads


@needs_llama_cpp
def test_a_file_that_is_cut_off_or_disagrees_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeDisagrees, match="fault of Pare"):
        prove(tmp_path, Rtn(group_size=32), config_of("llama"))

    path = tmp_path / "out" / "model.gguf"
    path.write_bytes(path.read_bytes()[:-5000])
    with (
        LlamaCppProcess(tmp_path, "cpu", threads=1) as process,
        pytest.raises(RuntimeFailed, match="Failed to init server"),
    ):
        process.load(path, 64)


@needs_llama_cpp
def test_a_tokenizer_that_llama_cpp_cuts_otherwise_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paredown.engine.formats.gguf_vocabulary._cutting", lambda _described: "llama-bpe")
    with pytest.raises(RuntimeDisagrees, match="tokens"):
        prove(tmp_path, Magnitude(), config_of("llama"))


def test_a_worker_without_llama_cpp_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda _name: None)
    save(tmp_path / "model", config_of("llama"))

    asked = order(tmp_path, [{"method": "magnitude"}], format="gguf", runtimes=("llama.cpp",))
    [proof, *_] = run(asked, lambda _progress: None, lambda: False).report.runtimes

    assert not proof.loads
    assert "xllamacpp" in (proof.detail or "")


@pytest.mark.parametrize(
    ("config", "recipe", "sentence"),
    [
        (config_of("opt"), RECIPES["Q4_0"], "gpt2, llama, mistral, qwen2, qwen3 models"),
        (config_of("llama"), (Rtn(bits=3, group_size=32),), "use 4 or 5 bits, or 8 bits symmetric"),
        (config_of("llama"), (Rtn(group_size=64),), "set group_size to 32"),
        (config_of("gpt2"), (Rtn(bits=8, group_size=32, symmetric=False),), "no 8-bit asymmetric"),
    ],
    ids=["opt", "bits", "group", "asymmetric"],
)
def test_what_gguf_cannot_hold_is_refused_before_any_work(
    tmp_path: Path, config: PreTrainedConfig, recipe: tuple[Stage, ...], sentence: str
) -> None:
    save_model(tmp_path / "model", config)
    with pytest.raises(FormatRefused, match=sentence):
        compress(tmp_path, recipe)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("llama", "hidden_act", "gelu"),
        ("gpt2", "activation_function", "relu"),
        ("qwen3", "attention_bias", True),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("qwen2", "head_dim", 32),
        ("llama", "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path, model_type: str, field: str, value: Any) -> None:
    config = config_of(model_type)
    setattr(config, field, value)
    save_model(tmp_path / "model", config)
    with pytest.raises(FormatRefused, match=r"llama\.cpp"):
        compress(tmp_path, RECIPES["BF16"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tokenizer: tokenizer.update(pre_tokenizer={"type": "Whitespace"}), "gpt-2, llama-bpe, qwen2"),
        (lambda tokenizer: tokenizer.update(normalizer={"type": "Lowercase"}), "gpt-2, llama-bpe, qwen2"),
        (lambda tokenizer: tokenizer["model"].update(byte_fallback=True), "knows sentencepiece's"),
        (lambda tokenizer: tokenizer["model"].update(merges=[]), "needs a tokenizer with merges"),
    ],
    ids=["cutting", "normalizer", "sentencepiece", "merges"],
)
def test_a_tokenizer_that_cannot_be_named_is_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    save(tmp_path / "model", config_of("llama"))
    change_tokenizer(tmp_path / "model", change)
    with pytest.raises(FormatRefused, match=sentence):
        write(tmp_path, compress(tmp_path, RECIPES["BF16"]))
    # A run knows before it compresses anything.
    with pytest.raises(FormatRefused, match=sentence):
        read_inputs(order(tmp_path, [{"method": "rtn", "group_size": 32}]), Format.GGUF)


def test_a_window_bounds_the_context_over_which_llama_cpp_agrees(tmp_path: Path) -> None:
    config = config_of("mistral")
    config.sliding_window = 40
    save(tmp_path / "model", config)

    path = write(tmp_path, compress(tmp_path, RECIPES["BF16"]))

    assert GGUFReader(path).fields["llama.context_length"].contents() == 40
