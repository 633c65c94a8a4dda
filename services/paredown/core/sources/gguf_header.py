"""GGUF headers, read within strict bounds before any other reader sees the file; and the `config.json` they amount to.

Any bytes at all give a header or GgufInvalid. Lists in it are counted and skipped, never kept: a tokenizer alone has
hundreds of thousands of strings, and no size of the model depends on one.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from paredown.core.errors import ArchitectureUnsupported, GgufInvalid

HEADER_LIMIT_BYTES = 128 * 2**20
MAX_TENSORS = 100_000
MAX_PAIRS = 10_000
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 16 * 2**20
# Over all lists of a file: each string is one step of ours.
MAX_ENTRIES = 8_000_000
MAX_TENSOR_NAME_BYTES = 256
MAX_ALIGNMENT = 2**16
MAX_ELEMENTS = 2**48

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """`shape` as in the file: the first dimension is the one that lies contiguous, so a linear is (in, out)."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Scalars and strings by key; arrays only by length."""

    metadata: dict[str, Any]
    array_lengths: dict[str, int]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """Reads forward through `read(start, length)` in growing blocks; refuses to go past the file or the limit."""

    def __init__(self, read: Callable[[int, int], bytes], file_bytes: int, name: str) -> None:
        self._read = read
        self._end = min(file_bytes, HEADER_LIMIT_BYTES)
        self._truncated = file_bytes <= HEADER_LIMIT_BYTES
        self._block = 2**18
        self._buffer = b""
        self._buffer_start = 0
        self.position = 0
        self.entries = 0
        self.name = name

    def broken(self, why: str) -> GgufInvalid:
        return GgufInvalid(f"{self.name}: {why}.")

    def take(self, length: int) -> bytes:
        begin = self.position - self._buffer_start
        if not 0 <= begin <= len(self._buffer) or begin + length > len(self._buffer):
            self._fill(length)
            begin = 0
        self.position += length
        return self._buffer[begin : begin + length]

    def skip(self, length: int) -> None:
        if self.position + length > self._end:
            raise self._past_the_end()
        self.position += length

    def _fill(self, length: int) -> None:
        if self.position + length > self._end:
            raise self._past_the_end()
        wanted = min(max(length, self._block), self._end - self.position)
        self._buffer = self._read(self.position, wanted)
        self._buffer_start = self.position
        self._block = min(2 * self._block, 2**22)
        if len(self._buffer) < length:
            raise self._past_the_end()

    def _past_the_end(self) -> GgufInvalid:
        if self._truncated:
            return self.broken("the file ends inside its own header: it is cut short, so download it again")
        return self.broken(f"the header is larger than {HEADER_LIMIT_BYTES} bytes")

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, limit: int, what: str) -> str:
        length = self.scalar("<Q")
        if length > limit:
            raise self.broken(f"{what} of {length} bytes; the limit is {limit}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error


def read_gguf_header(path: Path) -> GgufHeader:
    """Header of a local file, checked against the file's size. Raises GgufInvalid."""
    with path.open("rb") as stream:

        def read(start: int, length: int) -> bytes:
            stream.seek(start)
            return stream.read(length)

        return parse_gguf_header(read, path.stat().st_size, path.name)


def parse_gguf_header(read: Callable[[int, int], bytes], file_bytes: int, name: str) -> GgufHeader:
    """Header from `read(start, length)`. `file_bytes` is the size of the whole file; `name` is for the sentence."""
    cursor = _Cursor(read, file_bytes, name)
    if file_bytes < 24 or cursor.take(4) != b"GGUF":
        raise GgufInvalid(f"{name} is not a GGUF file: it does not begin with GGUF.")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise cursor.broken(f"GGUF version {version} is not supported; convert it to version 3")
    num_tensors, num_pairs = cursor.scalar("<Q"), cursor.scalar("<Q")
    if num_tensors > MAX_TENSORS or num_pairs > MAX_PAIRS:
        raise cursor.broken(f"{num_tensors} tensors and {num_pairs} settings are more than any model has")
    metadata: dict[str, Any] = {}
    array_lengths: dict[str, int] = {}
    for _ in range(num_pairs):
        key = cursor.text(MAX_KEY_BYTES, "the name of a setting")
        if key in metadata or key in array_lengths:
            raise cursor.broken(f"the setting {key[:200]!r} stands there twice")
        kind = cursor.scalar("<I")
        if kind == _ARRAY:
            array_lengths[key] = _skip_array(cursor, key)
        elif kind == _STRING:
            metadata[key] = cursor.text(MAX_STRING_BYTES, f"the setting {key[:200]!r}")
        elif kind in _SCALARS:
            value = cursor.scalar(_SCALARS[kind])
            metadata[key] = bool(value) if kind == _BOOL else value
        else:
            raise cursor.broken(f"the setting {key[:200]!r} has the unknown type {kind}")
    tensors: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _tensor(cursor)
        if tensor.name in tensors:
            raise cursor.broken(f"the tensor {tensor.name!r} stands there twice")
        tensors[tensor.name] = tensor
    _check_layout(cursor, metadata, tensors, file_bytes)
    return GgufHeader(metadata=metadata, array_lengths=array_lengths, tensors=tensors)


def _skip_array(cursor: _Cursor, key: str) -> int:
    kind = cursor.scalar("<I")
    length: int = cursor.scalar("<Q")
    cursor.entries += length
    if cursor.entries > MAX_ENTRIES:
        raise cursor.broken(f"the lists up to {key[:200]!r} have {cursor.entries} entries; the limit is {MAX_ENTRIES}")
    if kind == _STRING:
        for _ in range(length):
            size = cursor.scalar("<Q")
            if size > MAX_STRING_BYTES:
                raise cursor.broken(f"the setting {key[:200]!r} has an entry of {size} bytes")
            cursor.skip(size)
    elif kind in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[kind]))
    else:
        raise cursor.broken(f"the setting {key[:200]!r} is a list of the unknown or nested type {kind}")
    return length


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text(MAX_TENSOR_NAME_BYTES, "the name of a tensor")
    dimensions = cursor.scalar("<I")
    if not 1 <= dimensions <= 4:
        raise cursor.broken(f"the tensor {name!r} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    kind = cursor.scalar("<I")
    offset = cursor.scalar("<Q")
    try:
        dtype = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[dtype]
    except (ValueError, KeyError) as error:
        raise cursor.broken(f"the tensor {name!r} has the unknown type {kind}") from error
    if any(size < 1 for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise cursor.broken(f"the tensor {name!r} has the impossible shape {shape}")
    if shape[0] % block:
        raise cursor.broken(f"the tensor {name!r} has rows of {shape[0]}, no multiple of its type's blocks of {block}")
    return GgufTensor(name, shape, dtype.name, offset, prod(shape) // block * block_bytes)


def _check_layout(cursor: _Cursor, metadata: dict[str, Any], tensors: dict[str, GgufTensor], file_bytes: int) -> None:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.broken(f"the alignment {alignment!r} is not a power of two")
    data_start = -(-cursor.position // alignment) * alignment
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for tensor in ordered:
        if tensor.offset % alignment:
            raise cursor.broken(f"the tensor {tensor.name!r} does not begin at a multiple of {alignment}")
        if data_start + tensor.offset + tensor.size_bytes > file_bytes:
            raise cursor.broken(
                f"the tensor {tensor.name!r} reaches past the end of the file: it is cut short, so download it again"
            )
    for before, after in pairwise(ordered):
        if before.offset + before.size_bytes > after.offset:
            raise cursor.broken(f"the tensors {before.name!r} and {after.name!r} overlap")


# config.json field → GGUF key below the architecture's name, as transformers maps them.
_LLAMA_KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_GPT2_KEYS = {
    "n_positions": "context_length",
    "n_layer": "block_count",
    "n_inner": "feed_forward_length",
    "n_embd": "embedding_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_KEYS = {"llama": _LLAMA_KEYS, "qwen2": _LLAMA_KEYS, "qwen3": _LLAMA_KEYS, "gpt2": _GPT2_KEYS}

# GGUF's names of the linears of a block → ours (contracts.families).
GGUF_LINEARS = {
    "llama": {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "gpt2": {
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
}


def config_from_gguf(header: GgufHeader, name: str) -> dict[str, Any]:
    """The `config.json` that the header amounts to. Raises ArchitectureUnsupported, GgufInvalid."""
    architecture = header.metadata.get("general.architecture")
    keys = _KEYS.get(architecture) if isinstance(architecture, str) else None
    if keys is None or not isinstance(architecture, str):
        raise ArchitectureUnsupported(
            f"{name} holds the architecture {str(architecture)[:80]!r}; from GGUF this release takes "
            f"{', '.join(sorted(_KEYS))}. Another model may be had as safetensors."
        )
    _refuse_variants(header, architecture, name)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GgufInvalid(f"{name} has no token_embd.weight, so it is not a complete model.")
    found = {field: header.metadata.get(f"{architecture}.{key}") for field, key in keys.items()}
    config: dict[str, Any] = {field: value for field, value in found.items() if value is not None}
    if keys is _LLAMA_KEYS and "head_dim" not in config and architecture == "llama":
        rotary = header.metadata.get("llama.rope.dimension_count")
        config |= {"head_dim": rotary} if rotary is not None else {}
    for field, key in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
        token = header.metadata.get(f"tokenizer.ggml.{key}")
        config |= {field: token} if token is not None else {}
    return config | {
        "model_type": architecture,
        # The embedding has one row for each token, whatever the settings say.
        "vocab_size": embedding.shape[1],
        # GGUF leaves the head out where it is the embedding.
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }


# Rules of cutting text that transformers knows by the name that a GGUF file gives them (its GGUF_PRE_TOKENIZER_SPLITS).
KNOWN_CUTTING = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "dbrx"),
    *("smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35", "gpt-4o", "llama4"),
    *("kanana2", "talkie", "minimax-m2"),
)
# For every other name it takes GPT-2's, which these are; SmolLM's cuts digits apart, which its vocabulary never joins.
_GPT2_CUTTING = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "smollm")


def _refuse_variants(header: GgufHeader, architecture: str, name: str) -> None:
    """What the architecture's name hides, and what no reader would carry over rightly."""
    advice = "Use the model's safetensors checkpoint instead."
    if header.metadata.get(f"{architecture}.expert_count"):
        raise ArchitectureUnsupported(f"{name} is a mixture of experts, which this release does not take.")
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors:
        raise ArchitectureUnsupported(f"{name} scales its rotary positions, which GGUF readers lose. {advice}")
    cutting = header.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if header.metadata.get("tokenizer.ggml.model") == "gpt2" and cutting not in KNOWN_CUTTING + _GPT2_CUTTING:
        raise ArchitectureUnsupported(
            f"{name} cuts text by the rule {str(cutting)[:80]!r}, for which GGUF readers would take GPT-2's. {advice}"
        )
    if architecture == "llama" and any(
        tensor.startswith("blk.") and tensor.endswith(".bias") for tensor in header.tensors
    ):
        raise ArchitectureUnsupported(f"{name} is of a llama variant with biases, which GGUF readers lose. {advice}")
