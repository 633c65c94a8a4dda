"""Which windows of a calibration text overlap with held-out text.

The decontamination of GPT-3 (arXiv:2005.14165, appendix C) takes two texts to overlap where they share an n-gram of 13
words at the most; here it is 13 tokens, which are less than 13 words and so find more.
Shapes: N held-out sequences, W windows, T tokens in each, G n-grams in each.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]

OVERLAP_TOKENS = 13
# An n-gram is told by a 64-bit sum of its tokens, each times an odd number of its place. Two that are the same have the
# same sum, so no overlap is missed.
_FACTORS = [
    numpy.uint64(int.from_bytes(hashlib.sha256(f"place {place}".encode()).digest()[:8], "little") | 1)
    for place in range(OVERLAP_TOKENS)
]


def ngrams(sequences_NT: Array) -> Array:
    """The sorted sums of all n-grams that lie within a sequence."""
    return numpy.unique(_sums_NG(sequences_NT))


def overlapping(windows_WT: Array, held_out: Sequence[Array]) -> Array:
    """For each window, whether it shares an n-gram with any of the held-out ones (as `ngrams` gives them)."""
    found_W = numpy.zeros(len(windows_WT), dtype=bool)
    sums_WG = _sums_NG(windows_WT)
    for sums in held_out:
        found_W |= numpy.isin(sums_WG, sums).any(axis=1)
    return found_W


def _sums_NG(tokens_NT: Array) -> Array:
    number = max(0, tokens_NT.shape[1] - OVERLAP_TOKENS + 1)
    sums_NG = numpy.zeros((len(tokens_NT), number), dtype=numpy.uint64)
    unsigned_NT = tokens_NT.astype(numpy.uint64)
    for place, factor in enumerate(_FACTORS):
        sums_NG += unsigned_NT[:, place : place + number] * factor  # modulo 2^64
    return sums_NG
