"""Searches: a budget instead of a recipe. Recipes are tried until the one is found that loses least within it."""

import math
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from itertools import product
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field, TypeAdapter, model_validator

from paredown.contracts.artifact import Front
from paredown.contracts.job import (
    Calibration,
    Contract,
    DType,
    EvaluationSettings,
    Format,
    JobSpec,
    JobState,
    PoolName,
    Tag,
    Uri,
)
from paredown.contracts.recipes import Recipe
from paredown.contracts.recipes.quantization import Bits, GroupSize

MAX_CANDIDATES = 1000
_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)
_NOTHING = "nothing"

Parameters = dict[str, str | int | float]
Share = Annotated[float, Field(gt=0, lt=1)]


class SearchSpace(Contract):
    """What recipes are made of: nothing or one stage that prunes, then one that quantizes; every combination."""

    quantizers: tuple[Literal["rtn", "gptq", "awq", "mixed"], ...] = Field(
        ("rtn", "gptq", "awq", "mixed"), min_length=1, description="The last stage."
    )
    bits: tuple[Bits, ...] = Field((2, 3, 4, 8), min_length=1, description="Of rtn, gptq and awq.")
    average_bits: tuple[Annotated[float, Field(gt=2, le=8)], ...] = Field(
        (2.5, 3.0, 3.5, 4.0, 5.0), min_length=1, description="Of mixed."
    )
    grids: tuple[Literal["plain", "k-quant"], ...] = Field(
        ("plain",),
        min_length=1,
        exclude_if=lambda grids: grids == ("plain",),
        description="Scales as numbers, or llama.cpp's K-quants, which need the format gguf.",
    )
    group_sizes: tuple[GroupSize, ...] = Field(
        (32, 64, 128), min_length=1, description="Weights that share a scale; K-quants have groups of their own."
    )
    embeddings: tuple[Literal[4, 5, 8, 16], ...] = Field(
        (16, 8),
        min_length=1,
        description="Bits of embeddings and head, which are much of a small model. 4 and 5 need the format gguf.",
    )
    pruners: tuple[Literal["wanda", "sparsegpt"], ...] = Field(
        ("sparsegpt",), description="Zeros before quantizing. They save bytes only where the format stores none."
    )
    sparsities: tuple[Share, ...] = Field((0.3, 0.5), description="Shares of each row that a pruner sets to zero.")
    droppers: tuple[Literal["shortgpt", "llm-pruner"], ...] = Field(
        ("shortgpt", "llm-pruner"), description="Blocks or channels dropped before quantizing."
    )
    shares: tuple[Share, ...] = Field((0.1, 0.2), description="Of the blocks or channels that are dropped.")

    @model_validator(mode="after")
    def _bounded(self) -> "SearchSpace":
        if (count := len(self.combinations())) > MAX_CANDIDATES:
            raise ValueError(f"the space has {count} recipes, and a search looks at {MAX_CANDIDATES} at most")
        return self

    def combinations(self) -> list[Parameters]:
        """Every recipe by its parameters; those that it does not need are left out."""
        first: list[Parameters] = [{"first": _NOTHING}]
        first += [{"first": name, "sparsity": share} for name, share in product(self.pruners, self.sparsities)]
        first += [{"first": name, "share": share} for name, share in product(self.droppers, self.shares)]
        last: list[Parameters] = []
        for name, grid in product(self.quantizers, self.grids):
            kind: Parameters = {"quantizer": name}
            if self.grids != ("plain",):
                kind["grid"] = grid
            sizes: list[Parameters] = [{"group_size": size} for size in self.group_sizes] if grid == "plain" else [{}]
            if name == "mixed":
                widths: list[Parameters] = [{"average_bits": bits} for bits in self.average_bits]
            else:
                # The K-quant of 8 bits is the plain grid of 8.
                same = grid == "k-quant" and "plain" in self.grids
                widths = [{"bits": bits} for bits in self.bits if not (same and bits == 8)]
            rest = product(sizes, widths, self.embeddings)
            last += [kind | size | width | {"embeddings": bits} for size, width, bits in rest]
        return [before | after for before, after in product(first, last)]


def recipe_of(parameters: Parameters) -> Recipe:
    """The recipe that these parameters stand for."""
    own = ("bits", "average_bits", "group_size", "embeddings")
    last: dict[str, Any] = {"method": parameters["quantizer"], "k_quant": parameters.get("grid") == "k-quant"}
    last |= {name: parameters[name] for name in own if name in parameters}
    stages = [last]
    match parameters["first"]:
        case "wanda" | "sparsegpt" as pruner:
            stages.insert(0, {"method": pruner, "sparsity": parameters["sparsity"]})
        case "shortgpt":
            stages.insert(0, {"method": "shortgpt", "share": parameters["share"]})
        case "llm-pruner":
            stages.insert(0, {"method": "llm-pruner", "mlp_share": parameters["share"]})
        case _:
            pass
    return _RECIPE.validate_python(stages)


class Rung(StrEnum):
    """How thoroughly a recipe is tried."""

    PROXY = "proxy"  # on a share of the calibration and evaluation, to sort recipes out
    FULL = "full"  # as the search says; only these figures count in the end


class SearchSpec(Contract):
    """A goal within limits, the recipes to try, and how much trying is allowed."""

    model: Uri = Field(description="As of a job.")
    minimize: Literal["loss", "size"] = Field(
        "loss",
        description="loss: mean divergence from the base where the reports have it, else perplexity. size: bytes.",
    )
    max_size_ratio: float | None = Field(
        None, gt=0, le=4, description="Largest artifact, as a share of the base bytes."
    )
    max_perplexity_increase: float | None = Field(
        None, ge=0, le=100, description="Largest rise in perplexity over the base, as a fraction."
    )
    space: SearchSpace = SearchSpace()
    calibration: Calibration = Calibration()
    evaluation: EvaluationSettings = EvaluationSettings()
    format: Format = Format.AUTO
    dtype: DType = "float32"
    pool: PoolName | None = Field(None, description="Worker pool; empty lets each recipe's plan choose.")
    priority: int = Field(0, ge=-100, le=100, description="Of its jobs; higher runs first.")
    max_trials: int = Field(24, ge=1, le=200, description="Recipes that are tried.")
    max_seconds: int | None = Field(
        None, ge=60, le=30 * 86400, description="Time from submission, after which what has not ended is cancelled."
    )
    parallel: int = Field(2, ge=1, le=32, description="Jobs at a time.")
    proxy: float | None = Field(
        0.25,
        gt=0,
        lt=1,
        description="Share of the calibration and evaluation samples on which recipes are tried first; null tries "
        "each one in full at once.",
    )
    survivors: int = Field(4, ge=1, le=50, description="Recipes that are tried in full after the proxies.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the optimizer's choices.")
    name: str | None = Field(None, min_length=1, max_length=120, description="Name of the search.")
    tags: tuple[Tag, ...] = Field((), max_length=30, description="Of every artifact.")
    reuse: bool = Field(True, description="Take an artifact that is there already instead of a job, as sweeps do.")

    @model_validator(mode="after")
    def _within_a_limit(self) -> "SearchSpec":
        if self.minimize == "loss" and self.max_size_ratio is None:
            raise ValueError("give max_size_ratio: without a limit on bytes, the base itself loses least")
        if self.minimize == "size" and self.max_perplexity_increase is None:
            raise ValueError("give max_perplexity_increase: without a limit on loss, the smallest is always best")
        if self.calibration.stored_id is not None and self.proxy is not None:
            raise ValueError(
                "recipes are tried first on a share of the samples, and a calibration:// is taken whole; set proxy to "
                "null, or name a text in calibration.source"
            )
        return self

    @property
    def first_rung(self) -> Rung:
        return Rung.FULL if self.proxy is None else Rung.PROXY

    def job(self, recipe: Recipe, rung: Rung, *, tags: tuple[Tag, ...] = ()) -> JobSpec:
        """Raises ValidationError where the format cannot hold what the recipe leaves."""
        calibration, evaluation = self.calibration, self.evaluation
        if rung is Rung.PROXY:
            assert self.proxy is not None, "a search without proxies has no such rung"
            calibration = calibration.model_copy(update={"samples": _share(calibration.samples, self.proxy)})
            fewer = {"samples": _share(evaluation.samples, self.proxy), "speed": False}
            evaluation = evaluation.model_copy(update=fewer)
        return JobSpec(
            model=self.model,
            recipe=recipe,
            calibration=calibration,
            evaluation=evaluation,
            format=self.format,
            dtype=self.dtype,
            pool=self.pool,
            priority=self.priority,
            tags=(*self.tags, *tags),
        )


def _share(samples: int, share: float) -> int:
    return max(1, round(samples * share))


class SearchState(StrEnum):
    EXPLORING = "exploring"  # the first rung
    CONFIRMING = "confirming"  # the survivors, in full
    FINISHED = "finished"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (SearchState.FINISHED, SearchState.CANCELLED)


class TrialView(Contract):
    """One recipe tried, and what was measured of it."""

    number: int = Field(description="From 0, in the order in which they were begun.")
    rung: Rung
    recipe: Recipe
    recipe_name: str
    label: str = Field(description="The name, and where other trials have it too, the settings that differ.")
    predicted_size_ratio: float = Field(description="From the plan, before anything ran.")
    state: JobState
    reused: bool = Field(description="Whether an artifact that was there already took the job's place.")
    job_id: UUID | None
    artifact_id: UUID | None = Field(description="None before it is made, and once it is deleted.")
    perplexity: float | None
    perplexity_increase: float | None
    divergence: float | None = Field(description="Mean divergence from the base, in nats, where it was measured.")
    size_bytes: int | None
    size_ratio: float | None
    within_limits: bool | None = Field(description="Whether it holds the search's limits; none before it is measured.")
    on_front: bool = Field(description="Whether no other of its rung loses less at no more bytes, or the other way.")


def losses_of(trials: Sequence[TrialView]) -> dict[int, float]:
    """Number → loss, of the trials that were measured: divergence if all of them have it, else perplexity."""
    measured = [trial for trial in trials if trial.perplexity is not None and math.isfinite(trial.perplexity)]
    if measured and all(trial.divergence is not None for trial in measured):
        return {trial.number: trial.divergence for trial in measured if trial.divergence is not None}
    return {trial.number: trial.perplexity for trial in measured if trial.perplexity is not None}


class SearchView(Contract):
    """A search as lists show it."""

    id: UUID
    project: str
    name: str | None
    model: str
    state: SearchState
    minimize: Literal["loss", "size"]
    trials: int = Field(description="Begun so far, of both rungs.")
    progress: float = Field(ge=0, le=1)
    chosen_recipe: str | None = Field(description="Label of the recipe that was chosen.")
    created_at: AwareDatetime
    finished_at: datetime | None


class SearchDetails(SearchView):
    """A search with its trials, and what came of it."""

    spec: SearchSpec
    candidates: int = Field(description="Recipes that fit model and limits, as far as plans tell.")
    ruled_out: int = Field(description="Recipes that do not fit, or whose plan exceeds a limit; never run.")
    members: tuple[TrialView, ...]
    chosen: int | None = Field(description="Number of the trial that was chosen, one on the front.")
    explanation: str | None = Field(description="Why that one, or why none, in a sentence.")
    front: Front | None = Field(description="Of what was tried in full, on perplexity and bytes.")
