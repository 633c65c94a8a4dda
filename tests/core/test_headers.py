"""Hostile bytes: whatever a safetensors or GGUF file holds, its header is read or refused by name, within bounds."""

import json
import struct
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from paredown.contracts.families import shape_from_config
from paredown.core.errors import ArchitectureUnsupported, GgufInvalid, ModelRejected, SafetensorsInvalid
from paredown.core.sources.gguf_header import KNOWN_CUTTING, GgufHeader, config_from_gguf, parse_gguf_header
from paredown.core.sources.headers import TensorHeader, parse_safetensors_header
from paredown.core.sources.selection import (
    check_gguf_tensors,
    check_tensors,
    is_plain_name,
    model_shape,
    parse_config,
    parse_index,
)


def safetensors(data: bytes) -> dict[str, TensorHeader]:
    return parse_safetensors_header(lambda start, length: data[start : start + length], len(data), "x.safetensors")


def gguf_header(data: bytes) -> GgufHeader:
    return parse_gguf_header(lambda start, length: data[start : start + length], len(data), "x.gguf")


def file_of(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros((4,), np.int8), "empty": np.zeros((0, 5), np.float16)})


def test_a_good_header_is_read() -> None:
    tensors = safetensors(GOOD)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I8", (4,)),
        "empty": ("F16", (0, 5)),
    }


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        (struct.pack("<Q", 2**63) + b"{}", "claims a header"),
        (struct.pack("<Q", 100_000_001) + b"{}", "claims a header"),
        (struct.pack("<Q", 100) + b"{}", "inside its own header"),
        (file_of(b"[]"), "not an object"),
        (file_of(b'{"a": '), "not valid JSON"),
        (file_of(b"\xff\xff"), "not valid JSON"),
        (file_of(b"[" * 50_000), "not valid JSON"),
        (file_of(b'{"a": ' + b"1" * 5000 + b"}"), "not valid JSON"),
        (file_of(b'{"a": {}, "a": {}}'), "twice"),
        (file_of({"a": 3}), "not described"),
        (file_of({"a": {}}), "unknown dtype"),
        (file_of({"a": entry(dtype="OBJECT")}, bytes(8)), "unknown dtype"),
        (file_of({"a": entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
        (file_of({"a": entry(shape=[-2])}, bytes(8)), "list of sizes"),
        (file_of({"a": entry(shape=[True, 2])}, bytes(8)), "list of sizes"),
        (file_of({"a": entry(shape=[2.0])}, bytes(8)), "list of sizes"),
        (file_of({"a": entry(shape="2")}, bytes(8)), "list of sizes"),
        (file_of({"a": entry(shape=[1] * 9, offsets=[0, 4])}, bytes(4)), "list of sizes"),
        (file_of({"a": entry(shape=[2**62, 2**62])}, bytes(8)), "but 8 bytes"),
        (file_of({"a": entry(offsets=[8, 0])}, bytes(8)), "ordered"),
        (file_of({"a": entry(offsets=[0])}, bytes(8)), "ordered"),
        (file_of({"a": entry(offsets=[0, 4])}, bytes(8)), "but 4 bytes"),
        (file_of({"a": entry()}, bytes(4)), "cut short"),
        (file_of({"a": entry()}, bytes(9)), "nothing names"),
        (file_of({"a": entry(offsets=[1, 9])}, bytes(9)), "before the first"),
        (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlap or leave a gap"),
        (file_of({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17)), "overlap or leave a gap"),
        (file_of({}, b"x"), "nothing names"),
    ],
)
def test_a_bad_safetensors_header_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(SafetensorsInvalid, match=sentence):
        safetensors(data)


def test_no_more_than_the_header_is_read() -> None:
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return GOOD[start : start + length]

    parse_safetensors_header(read, len(GOOD), "x")
    assert sum(asked) == 8 + int.from_bytes(GOOD[:8], "little")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    for parse in (safetensors, gguf_header):
        with suppress(ModelRejected):
            parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", "I8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON,
        max_size=4,
    ),
    st.binary(max_size=16),
)
def test_any_json_is_a_header_or_refused(header: dict[str, Any], data: bytes) -> None:
    with suppress(ModelRejected):
        safetensors(file_of(header, data))


@given(JSON, JSON)
def test_any_json_is_a_config_and_an_index_or_refused(value: Any, key: Any) -> None:
    raw = json.dumps(value if isinstance(value, dict) else {"weight_map": value, "model_type": key}).encode()
    for parse in (lambda: model_shape(parse_config(raw)), lambda: parse_index(raw)):
        with suppress(ModelRejected):
            parse()


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "head_dim": 8,
}


@given(st.sampled_from(sorted(LLAMA)), JSON)
def test_a_config_with_any_value_in_any_field_is_a_shape_or_refused(field: str, value: Any) -> None:
    try:
        shape = model_shape({**LLAMA, field: value})
    except ModelRejected:
        return
    assert shape.parameters > 0


@given(st.dictionaries(st.text(max_size=40), st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=5))
def test_any_tensors_fit_the_config_or_are_refused(shapes: dict[str, tuple[int, int]]) -> None:
    tensors = {name: TensorHeader(name, "F32", shape, 0, 0) for name, shape in shapes.items()}
    tensors["model.embed_tokens.weight"] = TensorHeader("model.embed_tokens.weight", "F32", (96, 32), 0, 0)
    with pytest.raises(SafetensorsInvalid):
        check_tensors(tensors, shape_from_config(LLAMA))


def test_blocks_that_config_json_does_not_count_are_no_model_to_compress() -> None:
    """Of a model cut short in config.json alone, a part would be compressed, and measured beside that part."""
    shape = shape_from_config(LLAMA)
    sizes = {"model.embed_tokens.weight": (96, 32)} | {
        f"{name}.weight": (linear.out_features, linear.in_features) for name, linear in shape.named_linears()
    }
    tensors = {name: TensorHeader(name, "F32", size, 0, 0) for name, size in sizes.items()}
    check_tensors(tensors, shape)
    beyond = "model.layers.1.input_layernorm.weight"
    with pytest.raises(SafetensorsInvalid, match=r"promises 1 blocks, but the weights have model\.layers\.1\.\* too"):
        check_tensors(tensors | {beyond: TensorHeader(beyond, "F32", (32,), 0, 0)}, shape)


@given(st.text(max_size=20))
def test_a_plain_name_stays_in_its_directory(name: str) -> None:
    if is_plain_name(name):
        assert (Path("/base") / name).parent == Path("/base")
        assert name not in ("", ".", "..")


@cache
def good_gguf(architecture: str = "llama") -> bytes:
    """A whole model of two blocks, written by gguf's own writer."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(2)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_token_list([f"t{number}" for number in range(96)])
        writer.add_array("some.numbers", [1, 2, 3])
        tensors = {"token_embd": (96, 32), "output_norm": (32,)}
        for block in range(2):
            linears = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
            linears |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
            tensors |= {f"blk.{block}.{name}": shape for name, shape in linears.items()}
        for name, shape in tensors.items():
            writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def test_a_good_gguf_header_amounts_to_a_config(tmp_path: Path) -> None:
    header = gguf_header(good_gguf())
    assert header.array_lengths == {"tokenizer.ggml.tokens": 96, "some.numbers": 3}
    config = config_from_gguf(header, "x.gguf")
    shape = model_shape(config)
    check_gguf_tensors(header, shape, "x.gguf")
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"] is True
    assert (shape.num_blocks, shape.hidden_size, shape.vocab_size, shape.context_length) == (2, 32, 96, 64)
    (tmp_path / "x.gguf").write_bytes(good_gguf())
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {t.name: (tuple(map(int, t.shape)), t.n_bytes) for t in reader.tensors} == {
        t.name: (t.shape, t.size_bytes) for t in header.tensors.values()
    }


def test_a_rule_of_cutting_text_that_readers_do_not_know_is_refused() -> None:
    header = gguf_header(good_gguf())
    header.metadata["tokenizer.ggml.model"] = "gpt2"
    for rule in (*KNOWN_CUTTING, "smollm", "gpt-2"):
        header.metadata["tokenizer.ggml.pre"] = rule
        assert config_from_gguf(header, "x.gguf")
    header.metadata["tokenizer.ggml.pre"] = "deepseek-llm"
    with pytest.raises(ArchitectureUnsupported, match="'deepseek-llm', for which GGUF readers would take GPT-2's"):
        config_from_gguf(header, "x.gguf")
    assert set(KNOWN_CUTTING) <= set(GGUF_PRE_TOKENIZER_SPLITS), "transformers knows them"


def raw_gguf(*, version: int = 3, tensors: int = 0, pairs: int = 0, body: bytes = b"", magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "does not begin with GGUF"),
        (raw_gguf(magic=b"GGML"), "does not begin with GGUF"),
        (raw_gguf(version=1), "version 1"),
        (raw_gguf(version=0x03000000), "version"),
        (raw_gguf(tensors=2**40), "more than any model"),
        (raw_gguf(pairs=2**63), "more than any model"),
        (raw_gguf(pairs=1), "cut short"),
        (raw_gguf(pairs=1, body=struct.pack("<Q", 2**60)), "the limit is"),
        (raw_gguf(pairs=1, body=text(b"\xff")), "not UTF-8"),
        (raw_gguf(pairs=1, body=text(b"k") + struct.pack("<I", 77)), "unknown type 77"),
        (raw_gguf(pairs=1, body=text(b"k") + struct.pack("<IQ", 8, 2**50)), "the limit is"),
        (raw_gguf(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)), "entries"),
        (raw_gguf(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1000)), "cut short"),
        (raw_gguf(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "nested type"),
        (raw_gguf(pairs=1, body=text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**63)), "an entry of"),
        (raw_gguf(pairs=2, body=2 * (text(b"k") + struct.pack("<IB", 0, 1))), "twice"),
        (raw_gguf(tensors=1, body=tensor(shape=())), "0 dimensions"),
        (raw_gguf(tensors=1, body=tensor(shape=(1,) * 5)), "5 dimensions"),
        (raw_gguf(tensors=1, body=tensor(shape=(2**63, 2**63))), "impossible shape"),
        (raw_gguf(tensors=1, body=tensor(shape=(0,))), "impossible shape"),
        (raw_gguf(tensors=1, body=tensor(kind=4)), "unknown type 4"),
        (raw_gguf(tensors=1, body=tensor(shape=(33,), kind=8)), "no multiple"),
        (raw_gguf(tensors=1, body=tensor()), "past the end"),
        (raw_gguf(tensors=1, body=tensor(offset=2**63)), "past the end"),
        (raw_gguf(tensors=1, body=tensor(offset=1)), "multiple of 32"),
        (raw_gguf(tensors=2, body=2 * tensor() + bytes(300)), "twice"),
        (raw_gguf(tensors=2, body=tensor() + tensor(b"u") + bytes(300)), "overlap"),
        (raw_gguf(pairs=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0)), "power of two"),
        (raw_gguf(pairs=1, body=text(b"general.alignment") + struct.pack("<II", 4, 48)), "power of two"),
        (raw_gguf(pairs=1, body=text(b"general.alignment") + struct.pack("<II", 4, 2**31)), "power of two"),
        (raw_gguf(pairs=1, body=text(b"general.alignment") + struct.pack("<I", 8) + text(b"x")), "power of two"),
    ],
)
def test_a_bad_gguf_header_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(GgufInvalid, match=sentence):
        gguf_header(data)


def test_a_gguf_cut_anywhere_is_refused() -> None:
    data = good_gguf()
    for length in (*range(0, 2000, 37), len(data) - 1):
        with pytest.raises(GgufInvalid):
            gguf_header(data[:length])


@given(st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_a_mutated_gguf_is_a_model_or_refused(mutations: list[tuple[int, bytes]]) -> None:
    data = bytearray(good_gguf())
    for position, patch in mutations:
        data[position : position + len(patch)] = patch
    with suppress(ModelRejected):
        header = gguf_header(bytes(data))
        check_gguf_tensors(header, model_shape(config_from_gguf(header, "x.gguf")), "x.gguf")


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_mutated_safetensors_are_a_header_or_refused(mutations: list[tuple[int, bytes]]) -> None:
    data = bytearray(GOOD)
    for position, patch in mutations:
        data[position : position + len(patch)] = patch
    with suppress(ModelRejected):
        safetensors(bytes(data))


def test_long_lists_of_strings_are_skipped_through_small_reads() -> None:
    body = text(b"k") + struct.pack("<IIQ", 9, 8, 50_000) + b"".join(text(b"word" * 5) for _ in range(50_000))
    data = raw_gguf(pairs=2, body=body + text(b"after") + struct.pack("<II", 4, 7))
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    header = parse_gguf_header(read, len(data), "x")
    assert header.metadata == {"after": 7}
    assert header.array_lengths == {"k": 50_000}
    assert max(asked) <= 2**22
    assert sum(asked) <= 1.1 * len(data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'"),
        ({"general.architecture": 7}, "architecture '7'"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary"),
    ],
)
def test_variants_that_readers_would_lose_are_refused(change: dict[str, Any], sentence: str) -> None:
    header = gguf_header(good_gguf())
    header.metadata.update(change)
    with pytest.raises(ArchitectureUnsupported, match=sentence):
        config_from_gguf(header, "x.gguf")


def test_settings_that_do_not_fit_the_tensors_are_refused() -> None:
    header = gguf_header(good_gguf())
    for key, value in (
        ("llama.block_count", 3),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 96),
        ("llama.embedding_length", 64),
    ):
        changed = GgufHeader({**header.metadata, key: value}, header.array_lengths, header.tensors)
        with pytest.raises(GgufInvalid):
            check_gguf_tensors(changed, model_shape(config_from_gguf(changed, "x")), "x")
