"""Compression methods, one file each, named as their papers name them. A test holds them to the recipes' stages."""

from paredown.engine.method import LinearMethod, ModelMethod
from paredown.engine.methods import (
    deeper,
    esparse,
    gptq,
    laco,
    llm_pruner,
    magnitude,
    rtn,
    shortgpt,
    sparsegpt,
    wanda,
)

METHODS: dict[str, LinearMethod] = {
    "rtn": rtn.METHOD,
    "gptq": gptq.METHOD,
    "magnitude": magnitude.METHOD,
    "wanda": wanda.METHOD,
    "sparsegpt": sparsegpt.METHOD,
    "e-sparse": esparse.METHOD,
}

# These run before the others, in the recipe's order, and hand on another model.
MODEL_METHODS: dict[str, ModelMethod] = {
    "shortgpt": shortgpt.METHOD,
    "deeper": deeper.METHOD,
    "laco": laco.METHOD,
    "llm-pruner": llm_pruner.METHOD,
}
