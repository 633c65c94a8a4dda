"""Compression methods, one file each, named as their papers name them. A test holds METHODS to the recipes' stages."""

from paredown.engine.method import LinearMethod
from paredown.engine.methods import esparse, gptq, magnitude, rtn, sparsegpt, wanda

METHODS: dict[str, LinearMethod] = {
    "rtn": rtn.METHOD,
    "gptq": gptq.METHOD,
    "magnitude": magnitude.METHOD,
    "wanda": wanda.METHOD,
    "sparsegpt": sparsegpt.METHOD,
    "e-sparse": esparse.METHOD,
}
