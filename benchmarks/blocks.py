"""What rounding to GGUF's blocks loses, beside the quantizer of llama.cpp itself.

    python benchmarks/blocks.py LIBRARY

LIBRARY is a shared library of any build of llama.cpp that has `ggml_quantize_chunk`: libggml-base.so, or the extension
module of a binding. Each weight goes to the nearest point of its block, without and with channels' importance
(llama.cpp's importance matrix); no column makes up for another, which only `gptq` does. The table has root mean square
errors, weighed by the importance where there is one, as shares of llama.cpp's.
"""

import argparse
import ctypes

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor

from paredown.contracts import gguf
from paredown.contracts.recipes import Rtn
from paredown.engine.grid import nearest

ROWS, COLUMNS = 512, 1536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="of llama.cpp")
    llama_cpp = LlamaCpp(parser.parse_args().library)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    weights = {
        "normal": torch.randn(ROWS, COLUMNS, generator=generator) * 0.05,
        "heavy-tailed": torch.distributions.StudentT(4.0).sample(torch.Size((ROWS, COLUMNS))) * 0.05,
    }
    importance_I = torch.rand(COLUMNS, generator=generator) ** 3 + 0.01
    stages = {
        gguf.layer_type(stage, COLUMNS): stage.for_width(COLUMNS)
        for stage in (
            *(Rtn.model_validate({"bits": bits, "k_quant": True}) for bits in gguf.K_TYPES),
            *(
                Rtn.model_validate({"bits": bits, "symmetric": symmetric, "group_size": gguf.BLOCK_WEIGHTS})
                for bits, symmetric in gguf.GRID_TYPES
            ),
        )
    }
    print(f"{'type':6}" + "".join(f"{name:>16}{name + ', weighed':>24}" for name in weights))
    for kind, stage in stages.items():
        shares = [
            error(ours(weight_OI, stage, by_I), weight_OI, by_I)
            / error(llama_cpp.rounded(weight_OI, kind, by_I), weight_OI, by_I)
            for weight_OI in weights.values()
            for by_I in (None, importance_I)
        ]
        print(f"{kind:6}" + "".join(f"{share:{width}.3f}" for share, width in zip(shares, (16, 24) * 2, strict=True)))


class LlamaCpp:
    """llama.cpp's own quantizer."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointers, sizes = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 3
        self._library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *pointers, *sizes, ctypes.c_void_p]
        self._library.ggml_quantize_init.argtypes = [ctypes.c_int]

    def rounded(self, weight_OI: Tensor, kind: str, importance_I: Tensor | None) -> Tensor:
        number = GGMLQuantizationType[kind]
        self._library.ggml_quantize_init(int(number))
        weights, size = gguf.BLOCKS[kind]
        rows, columns = weight_OI.shape
        blocks = np.zeros((rows, columns // weights * size), np.uint8)
        written = self._library.ggml_quantize_chunk(
            int(number),
            weight_OI.contiguous().numpy().ctypes.data,
            blocks.ctypes.data,
            0,
            rows,
            columns,
            None if importance_I is None else importance_I.numpy().ctypes.data,
        )
        assert written == blocks.size
        return torch.from_numpy(dequantize(blocks, number))


def ours(weight_OI: Tensor, stage: Rtn, importance_I: Tensor | None) -> Tensor:
    return nearest(weight_OI, stage, torch.float16, "weights", importance_I, wide=True).dequantized()


def error(rounded_OI: Tensor, weight_OI: Tensor, importance_I: Tensor | None) -> float:
    squares_OI = (rounded_OI - weight_OI).square()
    return float((squares_OI if importance_I is None else squares_OI * importance_I).mean().sqrt())


if __name__ == "__main__":
    main()
