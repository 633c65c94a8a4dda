"""Recipes: ordered stages, one method each. One file for each family of methods."""

import hashlib
import json
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

from paredown.contracts.recipes.depth import Deeper, Depth, Laco, ShortGpt
from paredown.contracts.recipes.factorization import Svd
from paredown.contracts.recipes.pruning import Esparse, Magnitude, Pruner, Sparsegpt, Wanda
from paredown.contracts.recipes.quantization import (
    Awq,
    CalibratedEightBit,
    EightBit,
    Fp8,
    Fp8Gptq,
    Fp8Static,
    Gptq,
    Mixed,
    Owq,
    Quantizer,
    Rtn,
    SmoothQuant,
    Squeezellm,
    UniformGrid,
    WeightGrid,
)
from paredown.contracts.recipes.stage import Family, Stage
from paredown.contracts.recipes.training import Distil, Lora, Training
from paredown.contracts.recipes.width import Bonsai, LlmPruner, Width
from paredown.contracts.shapes import ModelShape

AnyStage = Annotated[
    Rtn
    | Gptq
    | Awq
    | SmoothQuant
    | Fp8
    | Fp8Static
    | Fp8Gptq
    | Owq
    | Squeezellm
    | Magnitude
    | Wanda
    | Sparsegpt
    | Esparse
    | ShortGpt
    | Deeper
    | Laco
    | LlmPruner
    | Bonsai
    | Lora
    | Distil
    | Svd
    | Mixed,
    Field(discriminator="method"),
]

STAGES: dict[str, type[Stage]] = {
    "rtn": Rtn,
    "gptq": Gptq,
    "awq": Awq,
    "smoothquant": SmoothQuant,
    "fp8": Fp8,
    "fp8-static": Fp8Static,
    "fp8-gptq": Fp8Gptq,
    "owq": Owq,
    "squeezellm": Squeezellm,
    "magnitude": Magnitude,
    "wanda": Wanda,
    "sparsegpt": Sparsegpt,
    "e-sparse": Esparse,
    "svd": Svd,
    "shortgpt": ShortGpt,
    "deeper": Deeper,
    "laco": Laco,
    "llm-pruner": LlmPruner,
    "bonsai": Bonsai,
    "lora": Lora,
    "distil": Distil,
    "mixed": Mixed,
}

_ORDER = list(Family)


def _possible_order(recipe: tuple[Stage, ...]) -> tuple[Stage, ...]:
    for index, stage in enumerate(recipe):
        if isinstance(stage, Esparse) and stage.shuffle:
            _first_pattern(stage, recipe[:index])
    _alone_on_weights(recipe)
    if recipe[0].method == "distil":
        raise ValueError(
            "distil has nothing to learn, because no stage before it changes the model; put one that prunes depth or "
            "width first"
        )
    for earlier, later in pairwise(recipe):
        if earlier.family is Family.QUANTIZATION and later.family is Family.QUANTIZATION:
            raise ValueError(
                f"{earlier.method} and {later.method} both quantize; a weight can be quantized once, so keep one"
            )
        if isinstance(earlier, Sparsegpt) and isinstance(later, Gptq | Mixed):
            _one_sweep(earlier, later)
        if _ORDER.index(later.family) < _ORDER.index(earlier.family):
            raise ValueError(
                f"{later.method} ({later.family}) cannot follow {earlier.method} ({earlier.family}), because it would "
                f"undo it; put {later.method} first"
            )
    return recipe


def _alone_on_weights(recipe: tuple[Stage, ...]) -> None:
    factorizing = next((stage for stage in recipe if stage.family is Family.FACTORIZATION), None)
    if factorizing is None:
        return
    for stage in recipe:
        if stage is not factorizing and stage.family not in (Family.DEPTH, Family.WIDTH, Family.TRAINING):
            raise ValueError(
                f"{factorizing.method} stores two factors, whose product keeps no zeros and lies on no grid, so "
                f"{stage.method} ({stage.family}) cannot be in one recipe with it; keep one of them"
            )


def _first_pattern(stage: Esparse, before: tuple[Stage, ...]) -> None:
    for earlier in before:
        if isinstance(earlier, Pruner) and earlier.pattern:
            raise ValueError(
                f"{stage.method} shuffles channels, which would break the pattern {earlier.pattern} that "
                f"{earlier.method} prunes to before it; put {stage.method} first, or set shuffle to false"
            )


def _one_sweep(pruning: Sparsegpt, rounding: Gptq | Mixed) -> None:
    if pruning.damping != rounding.damping:
        raise ValueError(
            f"sparsegpt and the {rounding.method} after it are solved in one sweep, with one damping: "
            f"give both {pruning.damping:g} or both {rounding.damping:g}"
        )
    if isinstance(rounding, Gptq) and rounding.damping_search:
        raise ValueError(
            "sparsegpt and the gptq after it are solved in one sweep, which cannot search for a damping: leave "
            "damping_search out"
        )


Recipe = Annotated[
    tuple[AnyStage, ...],
    Field(min_length=1, max_length=8, description="Stages in the order in which they run."),
    AfterValidator(_possible_order),
]


def recipe_hash(recipe: tuple[Stage, ...]) -> str:
    """SHA-256 of the stages without the fields at their default, so that a new optional field changes no hash."""
    canonical = json.dumps([stage.identity() for stage in recipe], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def conflict(earlier: tuple[Stage, ...], later: tuple[Stage, ...]) -> str | None:
    """Why stages cannot follow others that ran in a job before; what only stages of one sweep demand is left out."""
    for stage in later:
        for before in earlier:
            if before.family is Family.QUANTIZATION and stage.family is Family.QUANTIZATION:
                return f"it was quantized with {before.method} already, and a weight can be quantized once"
            if _ORDER.index(stage.family) < _ORDER.index(before.family):
                return f"{stage.method} ({stage.family}) would undo what {before.method} ({before.family}) did to it"
    try:
        _alone_on_weights(earlier + later)
        for stage in later:
            if isinstance(stage, Esparse) and stage.shuffle:
                _first_pattern(stage, earlier)
    except ValueError as error:
        return str(error)
    return None


def recipe_name(recipe: tuple[Stage, ...]) -> str:
    """A short label for tables and charts, such as `wanda-50% + gptq-4`."""
    return " + ".join(_stage_name(stage) for stage in recipe)


def recipe_labels(recipes: Sequence[tuple[Stage, ...]]) -> tuple[str, ...]:
    """Names that tell these recipes apart: those of one name also say in which settings they differ."""
    named: dict[str, list[tuple[Stage, ...]]] = {}
    for recipe in recipes:
        named.setdefault(recipe_name(recipe), []).append(recipe)
    return tuple(_label(recipe, named[recipe_name(recipe)]) for recipe in recipes)


def _label(recipe: tuple[Stage, ...], namesakes: Sequence[tuple[Stage, ...]]) -> str:
    differing = []
    for index, stage in enumerate(recipe):
        others = [other[index] for other in namesakes if index < len(other)]
        for field in type(stage).model_fields:
            value = getattr(stage, field)
            if any(getattr(other, field, None) != value for other in others):
                differing.append(f"{field} {value}")
    return f"{recipe_name(recipe)} ({', '.join(differing)})" if differing else recipe_name(recipe)


def _stage_name(stage: Stage) -> str:
    if isinstance(stage, Owq):
        return f"{stage.method}-{stage.bits + stage.extra_bits:g}"
    if isinstance(stage, WeightGrid | Mixed):
        bits = stage.bits if isinstance(stage, WeightGrid) else stage.average_bits
        return f"{stage.method}-{bits:g}" + ("-k" if stage.k_quant else "")
    if isinstance(stage, Squeezellm):
        return f"{stage.method}-{stage.bits}"
    if isinstance(stage, CalibratedEightBit):
        name = f"{stage.method}-w8a8" if isinstance(stage, SmoothQuant) else stage.method
        return name if stage.is_dynamic else f"{name}-static"
    if isinstance(stage, Pruner):
        return f"{stage.method}-{stage.pattern or f'{stage.share:.0%}'}"
    if isinstance(stage, Svd):
        return f"{stage.method}-{stage.ratio:.0%}" + ("" if stage.whitening else "-plain")
    if isinstance(stage, Depth):
        return f"{stage.method}-{f'{stage.blocks}-blocks' if stage.blocks else f'{stage.share:.0%}'}"
    if isinstance(stage, Width):
        return f"{stage.method}-{stage.mlp_share:.0%}" + (f"-{stage.head_groups}-heads" if stage.head_groups else "")
    if isinstance(stage, Training):
        return f"{stage.method}-{_short(stage.trained_tokens)}-tokens"
    return stage.method


def _short(count: int) -> str:
    """`64k`"""
    return f"{count / 1e6:.3g}M" if count >= 999_500 else f"{count / 1e3:.3g}k"


def shape_left(shape: ModelShape, recipe: Sequence[Stage]) -> ModelShape:
    """The shape of the artifact that a recipe makes of a model."""
    return reduce(lambda left, stage: stage.shape_after(left), recipe, shape)


def storing(recipe: tuple[Stage, ...]) -> Stage | None:
    """The stage after which weights are no longer one dense matrix, if the recipe has one."""
    return next((stage for stage in recipe if stage.family in (Family.FACTORIZATION, Family.QUANTIZATION)), None)


def quantizer(recipe: tuple[Stage, ...]) -> UniformGrid | EightBit | None:
    """The stage that quantizes the weights, if the recipe has one."""
    return next((stage for stage in recipe if isinstance(stage, UniformGrid | EightBit)), None)


def rounds_activations(recipe: tuple[Stage, ...]) -> bool:
    """Whether the recipe needs a format that says how activations are rounded."""
    return any(isinstance(stage, EightBit) for stage in recipe)


__all__ = [
    "STAGES",
    "AnyStage",
    "Awq",
    "Bonsai",
    "Deeper",
    "Depth",
    "Distil",
    "EightBit",
    "Esparse",
    "Family",
    "Fp8",
    "Fp8Gptq",
    "Fp8Static",
    "Gptq",
    "Laco",
    "LlmPruner",
    "Lora",
    "Magnitude",
    "Mixed",
    "Owq",
    "Quantizer",
    "Recipe",
    "Rtn",
    "ShortGpt",
    "SmoothQuant",
    "Sparsegpt",
    "Squeezellm",
    "Stage",
    "Svd",
    "Training",
    "UniformGrid",
    "Wanda",
    "WeightGrid",
    "Width",
    "conflict",
    "quantizer",
    "recipe_hash",
    "recipe_labels",
    "recipe_name",
    "rounds_activations",
    "shape_left",
    "storing",
]
