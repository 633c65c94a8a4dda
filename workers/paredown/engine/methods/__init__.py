"""Compression methods, one file each, named as their papers name them. A test holds them to the recipes' stages."""

from paredown.engine.method import AssigningMethod, LinearMethod, ModelMethod
from paredown.engine.methods import (
    awq,
    bonsai,
    deeper,
    distil,
    esparse,
    fp8,
    gptq,
    laco,
    llm_pruner,
    lora,
    magnitude,
    mixed,
    owq,
    rtn,
    shortgpt,
    smoothquant,
    sparsegpt,
    squeezellm,
    svd,
    wanda,
)

METHODS: dict[str, LinearMethod] = {
    "rtn": rtn.METHOD,
    "gptq": gptq.METHOD,
    "awq": awq.METHOD,
    "smoothquant": smoothquant.METHOD,
    "fp8": fp8.METHOD,
    "fp8-static": fp8.STATIC,
    "fp8-gptq": fp8.SOLVED,
    "owq": owq.METHOD,
    "squeezellm": squeezellm.METHOD,
    "magnitude": magnitude.METHOD,
    "wanda": wanda.METHOD,
    "sparsegpt": sparsegpt.METHOD,
    "e-sparse": esparse.METHOD,
    "svd": svd.METHOD,
}

# These run before the others, in the recipe's order, and hand on another model.
MODEL_METHODS: dict[str, ModelMethod] = {
    "shortgpt": shortgpt.METHOD,
    "deeper": deeper.METHOD,
    "laco": laco.METHOD,
    "llm-pruner": llm_pruner.METHOD,
    "bonsai": bonsai.METHOD,
    "lora": lora.METHOD,
    "distil": distil.METHOD,
}

# These run before the linear stages too, and say which of those takes their place on each layer.
ASSIGNING_METHODS: dict[str, AssigningMethod] = {"mixed": mixed.METHOD}

# All that run before the linear stages.
ACROSS_BLOCKS: dict[str, ModelMethod | AssigningMethod] = {**MODEL_METHODS, **ASSIGNING_METHODS}
