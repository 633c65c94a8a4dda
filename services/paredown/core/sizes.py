"""The bytes of an artifact's files: exact to 2 %, from sizes alone."""

import json
import math
from collections.abc import Iterator

from paredown.contracts import gguf
from paredown.contracts.families import LinearShape, ModelShape
from paredown.contracts.job import Format
from paredown.contracts.recipes import (
    EightBit,
    Mixed,
    Owq,
    Quantizer,
    Squeezellm,
    Stage,
    Svd,
    WeightGrid,
    quantizer,
    shape_left,
    storing,
)


def touched(shape: ModelShape, stage: Stage) -> list[tuple[str, LinearShape]]:
    """The linears that the stage compresses, under their full names."""
    return [(name, linear) for name, linear in shape.named_linears() if not stage.skips(name)]


def output_bytes(shape: ModelShape, recipe: tuple[Stage, ...], file_format: Format) -> int:
    """Bytes of the artifact's weight files, safetensors headers included. `file_format` is resolved, not auto."""
    shape = shape_left(shape, recipe)
    last = storing(recipe)
    if file_format is Format.GGUF:
        grid = _least(quantizer(recipe))
        assert grid is None or isinstance(grid, WeightGrid), "GGUF cannot say how activations are rounded"
        return _gguf_bytes(shape, grid) + _above_least(shape, last, wide=True)
    stage = _least(last) if file_format is not Format.SAFETENSORS else None
    total = 2 * (shape.other_parameters + shape.num_blocks * shape.block_other_parameters)
    if isinstance(last, Quantizer) and last.embeddings == 8:
        total -= shape.embedding_parameters
    header = _HEADER_FIXED_BYTES
    for name, linear in shape.named_linears():
        tensors: list[tuple[str, str, tuple[int, ...]]] = [
            (".weight", "BF16", (linear.out_features, linear.in_features))
        ]
        if stage is not None and not stage.skips(name):
            tensors = list(_stored_tensors(linear, stage, file_format))
        for suffix, dtype, dimensions in tensors:
            total += math.prod(dimensions) * _DTYPE_BYTES[dtype]
            header += _header_entry_bytes(name + suffix, dtype, dimensions, total)
    vector = _header_entry_bytes("model.layers.0.self_attn.q_norm.weight", "BF16", (shape.hidden_size,), total)
    above = _above_least(shape, last) if stage is not None else 0
    return total + header + vector * _other_tensors(shape) + above


def quantized_layers(shape: ModelShape, stage: Stage) -> list[tuple[int, int]]:
    """Output and input features of every linear that a stage does not skip."""
    return [
        (linear.out_features, linear.in_features) for name, linear in shape.named_linears() if not stage.skips(name)
    ]


def _least(stage: Stage | None) -> Stage | None:
    """A stage that stores weights; where bits are chosen layer by layer, what the layers of the fewest go through."""
    return stage.at(stage.choices[0]) if isinstance(stage, Mixed) else stage


def _above_least(shape: ModelShape, stage: Stage | None, *, wide: bool = False) -> int:
    """Bytes of layers that get more than the fewest bits: the budget is used up but for less than a layer's step."""
    if not isinstance(stage, Mixed):
        return 0
    layers = quantized_layers(shape, stage)
    least, _ = stage.reach(layers, wide=wide)
    return int((stage.average_bits - least) * sum(rows * columns for rows, columns in layers) / 8)


_DTYPE_BYTES = {"I8": 1, "F8_E4M3": 1, "U8": 1, "BF16": 2, "F16": 2, "U16": 2, "I32": 4, "I64": 8}
# Eight bytes of length, braces, and {"format":"pt"}.
_HEADER_FIXED_BYTES = 48


_Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


def _stored_tensors(linear: LinearShape, stage: Stage, file_format: Format) -> _Tensors:
    """What a format stores for a linear: names, dtypes, shapes."""
    match file_format:
        case Format.NATIVE:
            return _native_tensors(linear, stage)
        case Format.GPTQ | Format.AWQ:
            return _checkpoint_tensors(linear, stage, file_format)
    return _packed_tensors(linear, stage)


def _checkpoint_tensors(linear: LinearShape, grid: Stage, file_format: Format) -> _Tensors:
    """The layouts of AutoGPTQ and AutoAWQ, whose zero points are stored where the grid is symmetric too."""
    assert isinstance(grid, WeightGrid), "the format was checked"
    rows, columns = linear.out_features, linear.in_features
    groups = columns // (grid.group_size or columns)
    yield ".qweight", "I32", (columns, rows * grid.bits // 32)
    yield ".qzeros", "I32", (groups, rows * grid.bits // 32)
    yield ".scales", "F16", (groups, rows)
    if file_format is Format.GPTQ:
        yield ".g_idx", "I32", (columns,)


def _native_tensors(linear: LinearShape, stage: Stage) -> _Tensors:
    """What the native format stores for a linear, as engine/formats/layout.py says: names, dtypes, shapes."""
    rows, columns = linear.out_features, linear.in_features
    if isinstance(stage, Svd):
        rank = stage.rank(rows, columns)
        yield ".left", "BF16", (rows, rank)
        yield ".right", "BF16", (rank, columns)
    if isinstance(stage, Squeezellm):
        kept = sum(stage.kept(columns))
        yield ".codes", "U8", (rows, -(-columns * stage.bits // 8))
        yield ".codebooks", "BF16", (rows, 2**stage.bits)
        if kept:
            yield ".positions", "U16" if columns <= 2**16 else "I32", (rows, kept)
            yield ".kept", "BF16", (rows, kept)
    if isinstance(stage, WeightGrid):
        groups = columns // (stage.group_size or columns)
        yield ".codes", "U8", (rows, -(-columns * stage.bits // 8))
        yield ".scales", "BF16", (rows, groups)
        if not stage.symmetric:
            yield ".zeros", "U8", (rows, -(-groups * stage.bits // 8))
    if isinstance(stage, Owq) and (weak := stage.weak(columns)):
        yield ".columns", "I32", (weak,)
        yield ".weak", "BF16", (rows, weak)


def _packed_tensors(linear: LinearShape, grid: Stage) -> _Tensors:
    """What compressed-tensors stores for a linear: names, dtypes, shapes.

    In pack-quantized, codes lie dense in 32-bit words along each row, zero points along the columns of groups.
    """
    rows, columns = linear.out_features, linear.in_features
    if isinstance(grid, EightBit):
        yield ".weight", "I8" if grid.number == "int" else "F8_E4M3", (rows, columns)
        yield ".weight_scale", "BF16", (rows, 1)
        if not grid.is_dynamic:
            yield ".input_scale", "BF16", (1,)
        return
    assert isinstance(grid, WeightGrid), "the format was checked"
    groups = columns // grid.group_size if grid.group_size is not None else 1
    yield ".weight_packed", "I32", (rows, -(-columns * grid.bits // 32))
    yield ".weight_scale", "BF16", (rows, groups)
    yield ".weight_shape", "I64", (2,)
    if not grid.symmetric:
        yield ".weight_zero_point", "I32", (-(-rows * grid.bits // 32), groups)


# Of the packaged model: 16 bytes of token, 16 of merge and 4 of type for each entry of the vocabulary.
_VOCABULARY_ENTRY_BYTES = 36
_GGUF_METADATA_BYTES = 2000
_GGUF_TENSOR_BYTES = 64


def _gguf_bytes(shape: ModelShape, grid: WeightGrid | None) -> int:
    """One GGUF file: codes, embeddings as a quantizing stage wants them, vectors in float32, and the tokenizer."""
    embeddings = shape.vocab_size * (1 if shape.tied_embeddings else 2)
    others = shape.other_parameters - embeddings * shape.hidden_size
    total = 4 * (others + shape.num_blocks * shape.block_other_parameters)
    total += embeddings * _gguf_row_bytes(gguf.embedding_type(grid, shape.hidden_size), shape.hidden_size)
    for name, linear in shape.named_linears():
        coded = grid is not None and not grid.skips(name)
        kind = gguf.layer_type(grid, linear.in_features) if grid is not None and coded else None
        total += linear.out_features * _gguf_row_bytes(kind, linear.in_features)
        total += _GGUF_TENSOR_BYTES
    total += _GGUF_TENSOR_BYTES * _other_tensors(shape)
    return total + _GGUF_METADATA_BYTES + _VOCABULARY_ENTRY_BYTES * shape.vocab_size


def _gguf_row_bytes(kind: str | None, width: int) -> int:
    """Bytes of a row in a block type, or in 16 bits."""
    if kind is None:
        return 2 * width
    weights, size = gguf.BLOCKS[kind]
    return width // weights * size


def _header_entry_bytes(name: str, dtype: str, dimensions: tuple[int, ...], offset: int) -> int:
    entry = {name: {"dtype": dtype, "shape": dimensions, "data_offsets": [offset, offset]}}
    return len(json.dumps(entry, separators=(",", ":"))) - 1  # less two braces, plus a comma


def _other_tensors(shape: ModelShape) -> int:
    """Tensors besides the linears: norms and biases, of a vector each, and some four for the whole model."""
    vectors = shape.block_other_parameters / max(shape.hidden_size, 1)
    return 4 + shape.num_blocks * max(2, min(16, round(vectors)))
