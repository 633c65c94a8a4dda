"""Rows of codes as the blocks of a GGUF file: ggml's block_q4_0 … block_q8_0 and block_q2_K … block_q6_K.

Shapes: O out_features, G groups along the input, B super-blocks, N blocks, S weights of a block (32, of K-quants 256).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.contracts.gguf import BLOCK_WEIGHTS
from paredown.contracts.recipes.quantization import SUPER_BLOCK
from paredown.engine.quantized import GridLinear, KQuantLinear, QuantizedLinear

Bytes = NDArray[np.uint8]
# mypy does not know that bits of bytes are bytes.
_Parts = list[NDArray[Any]]


def packed(linear: GridLinear) -> Bytes:
    """The rows of a linear."""
    parts = _super_blocks(linear) if isinstance(linear, KQuantLinear) else _blocks(linear)
    rows: Bytes = np.concatenate(parts, axis=1).reshape(len(linear.codes_OI), -1)
    return rows


def _blocks(linear: QuantizedLinear) -> _Parts:
    """Scale, minimum, fifth bits, then the codes, two to a byte below 8 bits."""
    parts: _Parts = [_as_bytes(linear.scales_OG)]
    if (minima_OG := linear.minima_OG) is not None:
        parts.append(_as_bytes(minima_OG))
    if linear.bits == 8:
        return [*parts, linear.codes_OI.numpy().reshape(-1, BLOCK_WEIGHTS).view(np.uint8)]
    codes_NS = _unsigned(linear.codes_OI, BLOCK_WEIGHTS, (1 << linear.bits) // 2 if linear.symmetric else 0)
    if linear.bits == 5:
        parts.append(np.packbits(codes_NS >= 16, axis=-1, bitorder="little"))
    return [*parts, _interleaved(codes_NS & 15, 4, BLOCK_WEIGHTS // 2)]


def _super_blocks(linear: KQuantLinear) -> _Parts:
    if linear.minimum_codes_OG is not None and linear.super_minima_OB is not None:
        return _with_minima(linear, linear.minimum_codes_OG, linear.super_minima_OB)
    codes_NS = _unsigned(linear.codes_OI, SUPER_BLOCK, (1 << linear.bits) // 2)
    last = _as_bytes(linear.super_scales_OB)
    if linear.bits == 3:
        scales_NG = _unsigned(linear.scale_codes_OG, 16, 32)
        low_N8, high_N4 = _interleaved(scales_NG & 15, 4, 8), _interleaved(scales_NG >> 4, 2, 4)
        return [_highest_bits(codes_NS >> 2), _interleaved(codes_NS & 3, 2, 32), low_N8, high_N4, last]
    scales_NG = linear.scale_codes_OG.numpy().reshape(-1, 16).view(np.uint8)
    return [_interleaved(codes_NS & 15, 4, 64), _interleaved(codes_NS >> 4, 2, 32), scales_NG, last]


def _with_minima(linear: KQuantLinear, minimum_codes_OG: Tensor, super_minima_OB: Tensor) -> _Parts:
    codes_NS = _unsigned(linear.codes_OI, SUPER_BLOCK)
    groups = 16 if linear.bits == 2 else 8
    scales_NG, minima_NG = _unsigned(linear.scale_codes_OG, groups), _unsigned(minimum_codes_OG, groups)
    supers = [_as_bytes(linear.super_scales_OB), _as_bytes(super_minima_OB)]
    if linear.bits == 2:
        return [scales_NG | minima_NG << 4, _interleaved(codes_NS, 2, 32), *supers]
    # Six bits each: of the first four groups in a byte each, whose highest two are those of the last four.
    first, last = np.s_[:, :4], np.s_[:, 4:]
    parts: _Parts = [
        *supers,
        scales_NG[first] | scales_NG[last] >> 4 << 6,
        minima_NG[first] | minima_NG[last] >> 4 << 6,
        scales_NG[last] & 15 | minima_NG[last] << 4,
    ]
    if linear.bits == 5:
        parts.append(_highest_bits(codes_NS >> 4))
    return [*parts, _interleaved(codes_NS & 15, 4, 32)]


def _unsigned(codes: Tensor, to_a_block: int, lowest: int = 0) -> Bytes:
    """Codes as they lie, those of a block in a row. Those of symmetric grids are signed here and count from 0 there."""
    return (codes.numpy().reshape(-1, to_a_block).astype(np.int16) + lowest).astype(np.uint8)


def _interleaved(codes_NS: NDArray[Any], bits: int, run: int) -> Bytes:
    """A byte holds a code of each of 8 / bits runs of neighbours, one after the other; the first in its lowest bits."""
    runs_NCPR = codes_NS.reshape(len(codes_NS), -1, 8 // bits, run)
    shifts_P1 = (np.arange(8 // bits) * bits).astype(np.uint8)[:, None]
    whole: Bytes = np.bitwise_or.reduce(runs_NCPR << shifts_P1, axis=2).reshape(len(codes_NS), -1)
    return whole


def _highest_bits(bits_NS: NDArray[Any]) -> Bytes:
    """One bit of each of a super-block's weights: a byte for every 32nd of them."""
    return np.packbits(bits_NS.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(len(bits_NS), -1)


def _as_bytes(numbers_OG: Tensor) -> Bytes:
    assert numbers_OG.dtype == torch.float16
    as_bytes: Bytes = numbers_OG.contiguous().numpy().reshape(-1, 1).view(np.uint8)
    return as_bytes
