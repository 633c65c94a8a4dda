"""Which files of a source make a model, and whether they are one that Pare may load.

`select` looks before the download at names, sizes and config.json; `verify` looks after it at every byte's place.
Neither loads a tensor, and neither ever opens a pickle.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paredown.contracts.artifact import JsonObject
from paredown.contracts.families import (
    BLOCK_PREFIXES,
    ModelShape,
    UnsupportedArchitecture,
    shape_from_config,
    stored_name,
)
from paredown.core.errors import (
    ArchitectureUnsupported,
    GgufInvalid,
    ModelRejected,
    NotAModel,
    PickleRefused,
    SafetensorsInvalid,
    ShardNameUnsafe,
)
from paredown.core.sources.base import (
    CONFIG_LIMIT_BYTES,
    INDEX_LIMIT_BYTES,
    SMALL_FILE_LIMIT_BYTES,
    Container,
    ModelSource,
    SourceFile,
    read_range,
)
from paredown.core.sources.gguf_header import (
    GGUF_LINEARS,
    GgufHeader,
    config_from_gguf,
    parse_gguf_header,
    read_gguf_header,
)
from paredown.core.sources.headers import TensorHeader, parse_json_object, read_safetensors_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# All that a tokenizer of the supported families reads. Python files are never among them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "model.pt", "model.pth", "model.ckpt")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_FLOATS = ("F64", "F32", "F16", "BF16")
_EMBEDDINGS = {
    "llama": ("model.embed_tokens.weight", "embed_tokens.weight"),
    "opt": ("model.decoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    "gpt2": ("transformer.wte.weight", "wte.weight"),
    "gemma": ("model.embed_tokens.weight", "embed_tokens.weight"),
    "phi3": ("model.embed_tokens.weight", "embed_tokens.weight"),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_in.weight"),
    "bloom": ("transformer.word_embeddings.weight", "word_embeddings.weight"),
    "falcon": ("transformer.word_embeddings.weight", "word_embeddings.weight"),
    "mixtral": ("model.embed_tokens.weight", "embed_tokens.weight"),
    "qwen2_moe": ("model.embed_tokens.weight", "embed_tokens.weight"),
    "qwen3_moe": ("model.embed_tokens.weight", "embed_tokens.weight"),
}
_MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Selection:
    """The files that make the model."""

    files: tuple[SourceFile, ...]
    container: Container
    config: JsonObject
    shape: ModelShape
    gguf_file: str | None


def select(source: ModelSource) -> Selection:
    """Choose the model's files. Raises ModelRejected with a sentence on what the place holds instead."""
    found = source.files()
    if source.gguf_file is not None:
        return _select_gguf(source, found[source.gguf_file])
    if WEIGHTS not in found and INDEX not in found:
        ggufs = sorted(name for name in found if name.endswith(".gguf"))
        if len(ggufs) == 1:
            return _select_gguf(source, found[ggufs[0]])
        raise _no_weights(found, ggufs)
    if CONFIG not in found:
        raise NotAModel("There is no config.json beside the weights; Pare needs the whole checkpoint of a model.")
    config = parse_config(_read_small(source, found[CONFIG], CONFIG_LIMIT_BYTES))
    shape = model_shape(config)
    # transformers, too, takes the single file where both are there.
    if WEIGHTS in found:
        weights = [found[WEIGHTS]]
    else:
        shards = sorted(set(parse_index(_read_small(source, found[INDEX], INDEX_LIMIT_BYTES)).values()))
        missing = [shard for shard in shards if shard not in found]
        if missing:
            raise NotAModel(f"The index names the shard {missing[0]!r}, but it is not there.")
        weights = [found[INDEX], *(found[shard] for shard in shards)]
    extras = [found[name] for name in TOKENIZER_FILES if name in found]
    for extra in extras:
        if extra.size_bytes > SMALL_FILE_LIMIT_BYTES:
            raise NotAModel(f"{extra.path} has {extra.size_bytes} bytes; no tokenizer file is so large.")
    return Selection((found[CONFIG], *weights, *extras), "safetensors", config, shape, None)


def _select_gguf(source: ModelSource, file: SourceFile) -> Selection:
    header = parse_gguf_header(
        lambda start, length: read_range(source, file, start, length), file.size_bytes, file.path
    )
    config = config_from_gguf(header, file.path)
    shape = model_shape(config)
    check_gguf_tensors(header, shape, file.path)
    return Selection((file,), "gguf", config, shape, file.path)


def _no_weights(found: dict[str, SourceFile], ggufs: list[str]) -> ModelRejected:
    if ggufs:
        return NotAModel(f"There are {len(ggufs)} GGUF files; name one of them in the address, such as {ggufs[0]}.")
    pickles = sorted(name for name in found if name.endswith(_PICKLE_SUFFIXES) or name in PICKLE_FILES)
    if pickles:
        return PickleRefused(
            f"The weights are there only as pickle ({pickles[0]}), which can run code when it is read. Convert them on "
            "a machine you can lose: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) with transformers "
            "writes model.safetensors; submit that directory."
        )
    others = sorted(name for name in found if name.endswith(".safetensors"))
    if others:
        return NotAModel(
            f"{others[0]} is there, but neither model.safetensors nor model.safetensors.index.json; rename it or write "
            "the checkpoint with save_pretrained."
        )
    return NotAModel("There is no model: neither model.safetensors, nor its index, nor a GGUF file.")


def _read_small(source: ModelSource, file: SourceFile, limit: int) -> bytes:
    if file.size_bytes > limit:
        raise NotAModel(f"{file.path} has {file.size_bytes} bytes; the limit is {limit}.")
    return read_range(source, file, 0, file.size_bytes)


def parse_config(raw: bytes) -> JsonObject:
    """A `config.json` within its limit. Raises NotAModel, ArchitectureUnsupported."""
    try:
        config = parse_json_object(raw, CONFIG)
    except SafetensorsInvalid as error:
        raise NotAModel(error.detail) from error
    if config.get("quantization_config") or config.get("compression_config"):
        raise ArchitectureUnsupported(
            "The model is quantized already (config.json has quantization_config); submit the model it was made from."
        )
    return config


def model_shape(config: JsonObject) -> ModelShape:
    try:
        return shape_from_config(config)
    except UnsupportedArchitecture as error:
        raise ArchitectureUnsupported(f"{error}.") from error


def parse_index(raw: bytes) -> dict[str, str]:
    """Tensor → shard from `model.safetensors.index.json`. Raises SafetensorsInvalid, ShardNameUnsafe."""
    weight_map: Any = parse_json_object(raw, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SafetensorsInvalid(f"{INDEX} has no weight_map.")
    shards: dict[str, str] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise ShardNameUnsafe(str(shard)[:200])
        shards[tensor] = shard
    if len(set(shards.values())) > _MAX_SHARDS:
        raise SafetensorsInvalid(f"{INDEX} names more than {_MAX_SHARDS} shards.")
    return shards


def is_plain_name(name: str) -> bool:
    """Whether the name is of a file beside the others: no directory, no drive, nothing hidden or unprintable."""
    return (
        0 < len(name) <= 255
        and PurePosixPath(name).name == name
        and not name.startswith(".")
        and name.isprintable()
        and not re.search(r'[\\/:*?"<>|]', name)
    )


def verify(directory: Path, selection: Selection) -> None:
    """Check the fetched files against their own headers and the configuration. Raises ModelRejected."""
    if selection.gguf_file is not None:
        header = read_gguf_header(directory / selection.gguf_file)
        check_gguf_tensors(header, selection.shape, selection.gguf_file)
        return
    if (directory / INDEX).exists() and not (directory / WEIGHTS).exists():
        tensors = _indexed_tensors(directory)
    else:
        tensors = read_safetensors_header(directory / WEIGHTS)
    check_tensors(tensors, selection.shape)


def _indexed_tensors(directory: Path) -> dict[str, TensorHeader]:
    index = parse_index((directory / INDEX).read_bytes())
    headers = {shard: read_safetensors_header(directory / shard) for shard in set(index.values())}
    tensors: dict[str, TensorHeader] = {}
    for name, shard in index.items():
        if name not in headers[shard]:
            raise SafetensorsInvalid(f"The index places the tensor {name[:200]!r} in {shard}, but it is not there.")
        tensors[name] = headers[shard][name]
    return tensors


def check_tensors(tensors: dict[str, TensorHeader], shape: ModelShape) -> None:
    """Whether the tensors have the sizes that config.json promises. Raises SafetensorsInvalid."""
    embeddings = [tensors[name] for name in _EMBEDDINGS[shape.family] if name in tensors]
    if not embeddings:
        raise SafetensorsInvalid(f"The weights have no {_EMBEDDINGS[shape.family][0]}; this is not a complete model.")
    # OPT may embed in fewer dimensions than its blocks have.
    widths = None if shape.family == "opt" else shape.hidden_size
    rows, width = embeddings[0].shape if len(embeddings[0].shape) == 2 else (0, 0)
    if rows != shape.vocab_size or (widths is not None and width != widths):
        raise SafetensorsInvalid(
            f"config.json promises {shape.vocab_size} tokens of {shape.hidden_size} channels, but "
            f"{embeddings[0].name} has the shape {embeddings[0].shape}."
        )
    prefix = _stored_prefix(tensors, shape)
    for name, linear in shape.named_linears():
        within = stored_name(shape.family, name).removeprefix(BLOCK_PREFIXES[shape.family])
        stored = tensors.get(f"{prefix}{within}.weight")
        # GPT-2's Conv1D stores (in, out).
        expected = (linear.out_features, linear.in_features)
        expected = expected[::-1] if shape.family == "gpt2" else expected
        if stored is None:
            raise SafetensorsInvalid(f"config.json promises the layer {name}, but the weights do not have it.")
        if stored.shape != expected:
            raise SafetensorsInvalid(f"config.json promises {name} of shape {expected}, but it has {stored.shape}.")
        if stored.dtype not in _FLOATS:
            raise ArchitectureUnsupported(f"{name} is stored as {stored.dtype}; Pare compresses {', '.join(_FLOATS)}.")
    beyond = f"{prefix}{shape.num_blocks}."
    if any(name.startswith(beyond) for name in tensors):
        raise SafetensorsInvalid(
            f"config.json promises {shape.num_blocks} blocks, but the weights have {beyond}* too; correct the number "
            "there, or leave those weights out of the files."
        )


def _stored_prefix(tensors: dict[str, TensorHeader], shape: ModelShape) -> str:
    """Checkpoints of a base model without its head leave out the outermost name."""
    prefix = BLOCK_PREFIXES[shape.family]
    bare = prefix.split(".", 1)[1]
    first = f"0.{shape.linears[0].name}.weight"
    return bare if f"{bare}{first}" in tensors and f"{prefix}{first}" not in tensors else prefix


def check_gguf_tensors(header: GgufHeader, shape: ModelShape, name: str) -> None:
    """Whether the tensors have the sizes that the settings promise. Raises GgufInvalid."""
    if header.tensors["token_embd.weight"].shape != (shape.hidden_size, shape.vocab_size):
        raise GgufInvalid(f"{name}: token_embd.weight does not have the {shape.hidden_size} channels of the settings.")
    linears = {linear.name: linear for linear in shape.linears}
    for block in range(shape.num_blocks):
        for gguf_name, our_name in GGUF_LINEARS[shape.family].items():
            linear = linears[our_name]
            tensor = header.tensors.get(f"blk.{block}.{gguf_name}.weight")
            if tensor is None or tensor.shape != (linear.in_features, linear.out_features):
                found = "missing" if tensor is None else f"of shape {tensor.shape}"
                raise GgufInvalid(
                    f"{name}: blk.{block}.{gguf_name}.weight should have the shape "
                    f"{(linear.in_features, linear.out_features)}, but is {found}."
                )
    beyond = f"blk.{shape.num_blocks}."
    if any(tensor.startswith(beyond) for tensor in header.tensors):
        raise GgufInvalid(
            f"{name}: the settings promise {shape.num_blocks} blocks, but there are tensors {beyond}* too; convert the "
            "model again."
        )
