"""Codes of a few bits, packed densely: row by row, lowest bit first, each row filled up to whole bytes.

Shapes: O rows, I codes of a row, B bytes of a row.
"""

import numpy
import torch
from torch import Tensor

# Codes packed at once: each is a byte for every one of its bits while it is.
_CHUNK = 2**22


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes of a row."""
    return -(-codes * bits // 8)


def pack(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2^bits → bytes_OB."""
    shifts = numpy.arange(bits, dtype=numpy.uint8)
    parts = [
        numpy.packbits(
            ((part_OI.numpy()[:, :, None] >> shifts) & 1).reshape(len(part_OI), -1), axis=1, bitorder="little"
        )
        for part_OI in torch.split(codes_OI, max(1, _CHUNK // codes_OI.shape[1]))
    ]
    return torch.from_numpy(numpy.concatenate(parts))


def unpack(bytes_OB: Tensor, bits: int, codes: int) -> Tensor:
    """bytes_OB → so many uint8 codes of each row."""
    weights = (1 << numpy.arange(bits)).astype(numpy.uint8)
    parts = []
    for part_OB in torch.split(bytes_OB, max(1, _CHUNK // codes)):
        set_OK = numpy.unpackbits(part_OB.numpy(), axis=1, count=codes * bits, bitorder="little")
        parts.append((set_OK.reshape(len(part_OB), codes, bits) * weights).sum(2, dtype=numpy.uint8))
    return torch.from_numpy(numpy.concatenate(parts))
