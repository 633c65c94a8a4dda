"""Sweeps: many recipes over one model, measured alike, followed and cancelled as one thing."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from itertools import product
from math import isfinite
from statistics import median
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import (
    AwareDatetime,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from paredown.contracts.artifact import Front
from paredown.contracts.job import (
    Budget,
    Calibration,
    Contract,
    DType,
    EvaluationSettings,
    Format,
    JobError,
    JobSpec,
    JobState,
    PoolName,
    Tag,
    Uri,
)
from paredown.contracts.recipes import Recipe, recipe_hash, recipe_labels, recipe_name
from paredown.contracts.report import Sha256, Verdict

MAX_RECIPES = 200
MAX_CALIBRATIONS = 8
_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)

SettingPath = Annotated[str, StringConstraints(pattern=r"^[0-7]\.[a-z][a-z0-9_]*$")]


class Grid(Contract):
    """A recipe in which some settings take each of several values, every combination of them."""

    recipe: tuple[dict[str, JsonValue], ...] = Field(
        min_length=1, max_length=8, description="The stages, with what all combinations share."
    )
    values: dict[SettingPath, tuple[JsonValue, ...]] = Field(
        min_length=1,
        max_length=8,
        description="Values by place: `0.bits` is the field bits of the first stage. The last place varies fastest.",
    )

    @model_validator(mode="after")
    def _expands(self) -> "Grid":
        self.recipes()
        return self

    def recipes(self) -> tuple[Recipe, ...]:
        """Every combination. Raises ValueError with the one that is no recipe."""
        count = 1
        for place, values in self.values.items():
            if int(place[0]) >= len(self.recipe):
                raise ValueError(f"{place} names a stage that the recipe does not have")
            if not values:
                raise ValueError(f"{place} has no value to take")
            count *= len(values)
            if count > MAX_RECIPES:
                raise ValueError(f"the grid has more than {MAX_RECIPES} combinations; take values out, or make two")
        return tuple(self._recipe(combination) for combination in product(*self.values.values()))

    def _recipe(self, combination: tuple[JsonValue, ...]) -> Recipe:
        stages = [dict(stage) for stage in self.recipe]
        for place, value in zip(self.values, combination, strict=True):
            number, _, field = place.partition(".")
            stages[int(number)][field] = value
        try:
            return _RECIPE.validate_python(stages)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            chosen = ", ".join(f"{place}={value}" for place, value in zip(self.values, combination, strict=True))
            reason = str(first["msg"]).removeprefix("Value error, ")
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"with {chosen} it is no recipe: {f'{where}: ' if where else ''}{reason}") from error


class SweepSpec(Contract):
    """One job for each recipe; everything else is the same for all, so that their figures compare."""

    model: Uri = Field(description="As of a job.")
    recipes: tuple[Recipe, ...] = Field((), max_length=MAX_RECIPES, description="One job each; or give a grid.")
    grid: Grid | None = None
    calibration: Calibration = Calibration()
    calibrations: tuple[Calibration, ...] = Field(
        (),
        max_length=MAX_CALIBRATIONS,
        exclude_if=lambda given: not given,
        description="In place of `calibration`, and for a single recipe: one job with each, which shows how much the "
        "figures hang on it.",
    )
    evaluation: EvaluationSettings = EvaluationSettings()
    budget: Budget | None = None
    format: Format = Field(Format.AUTO, description="As of a job; auto chooses for each recipe.")
    dtype: DType = "float32"
    pool: PoolName | None = Field(None, description="Worker pool; empty lets each recipe's plan choose.")
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")
    deadline_at: AwareDatetime | None = Field(None, description="Jobs not finished by then fail.")
    name: str | None = Field(None, min_length=1, max_length=120, description="Name of the sweep.")
    tags: tuple[Tag, ...] = Field((), max_length=32, description="Of every artifact.")
    reuse: bool = Field(
        True,
        description="Take an artifact that the project can read, instead of a job, where model, recipe, calibration, "
        "evaluation, format and number type are the same.",
    )

    @model_validator(mode="after")
    def _different_recipes(self) -> "SweepSpec":
        if bool(self.recipes) == (self.grid is not None):
            raise ValueError("a sweep needs recipes or a grid, and not both")
        seen: dict[str, int] = {}
        for index, recipe in enumerate(self.all_recipes()):
            first = seen.setdefault(recipe_hash(recipe), index)
            if first != index:
                raise ValueError(f"recipes {first} and {index} are the same ({recipe_name(recipe)}); give each once")
        return self

    @model_validator(mode="after")
    def _different_calibrations(self) -> "SweepSpec":
        given = self.calibrations
        if not given:
            return self
        if len(given) == 1 or len(self.all_recipes()) > 1:
            raise ValueError("calibrations are two or more, for one recipe; for several recipes give one calibration")
        if self.calibration != Calibration():
            raise ValueError("give calibration or calibrations, not both")
        if again := next((index for index, each in enumerate(given) if each in given[:index]), None):
            raise ValueError(f"calibrations {given.index(given[again])} and {again} are the same; give each once")
        if not any(stage.needs_calibration for stage in self.all_recipes()[0]):
            raise ValueError("no stage of the recipe looks at calibration text, so its figures hang on none")
        return self

    def all_recipes(self) -> tuple[Recipe, ...]:
        return self.grid.recipes() if self.grid else self.recipes

    def variants(self) -> tuple[tuple[Recipe, Calibration], ...]:
        """What each member has of its own, in the order in which they are numbered, from 0."""
        recipes = self.all_recipes()
        if self.calibrations:
            return tuple((recipes[0], calibration) for calibration in self.calibrations)
        return tuple((recipe, self.calibration) for recipe in recipes)

    def labels(self) -> tuple[str, ...]:
        """Of each member: what tells it from the others."""
        if self.calibrations:
            return calibration_labels(self.calibrations)
        return recipe_labels(self.all_recipes())

    def job(self, recipe: Recipe, calibration: Calibration | None = None) -> JobSpec:
        """Raises ValidationError where the format cannot hold what the recipe leaves."""
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "model",
                "evaluation",
                "budget",
                "format",
                "dtype",
                "pool",
                "priority",
                "deadline_at",
                "tags",
            )
        }
        return JobSpec(recipe=recipe, calibration=calibration or self.calibration, **shared)


def calibration_labels(calibrations: Sequence[Calibration]) -> tuple[str, ...]:
    """Each by the settings in which they differ; a source alone needs no name."""
    rows = [calibration.model_dump(mode="json") for calibration in calibrations]
    names = [name for name in Calibration.model_fields if len({str(row.get(name)) for row in rows}) > 1]
    return tuple(
        ", ".join(
            str(getattr(calibration, name)) if name == "source" else f"{name} {getattr(calibration, name)}"
            for name in names
        )
        for calibration in calibrations
    )


class PlannedRecipe(Contract):
    """What one recipe of a sweep would need."""

    position: int = Field(description="Number of the recipe, from 0.")
    label: str
    reused: bool = Field(description="Whether an artifact that is there would take the job's place.")
    pool: str
    seconds: float
    memory_bytes: int
    output_bytes: int
    size_ratio: float


class SweepPlan(Contract):
    """What a sweep would need, before it is queued. Totals are of the jobs that it would make."""

    recipes: int
    jobs: int = Field(description="Recipes less those whose artifact is there already.")
    reused: int
    seconds: float = Field(description="Of worker time, all jobs together; several workers share it.")
    cost: float
    currency: str
    output_bytes: int
    memory_bytes: int = Field(description="Of the job that needs most.")
    members: tuple[PlannedRecipe, ...]
    warnings: tuple[str, ...] = Field((), description="Of the jobs' plans, each once.")


class SweepState(StrEnum):
    """Derived from the jobs; nothing stores it."""

    QUEUED = "queued"  # no job has begun
    RUNNING = "running"
    FINISHED = "finished"  # every job has ended, in whichever way
    CANCELLED = "cancelled"  # it was cancelled, and every job has ended

    @property
    def terminal(self) -> bool:
        return self in (SweepState.FINISHED, SweepState.CANCELLED)


class SweepMember(Contract):
    """One recipe of a sweep: its job or the artifact that was there already, and what was measured."""

    position: int = Field(description="Number of the recipe, or of the calibration, from 0.")
    recipe_name: str
    label: str = Field(
        description="The name, and where others of the sweep have it too, the settings that differ; of a sweep over "
        "calibrations, in what this one differs."
    )
    recipe_hash: Sha256
    state: JobState
    reused: bool = Field(description="Whether an artifact that was there already took the job's place.")
    job_id: UUID | None = Field(description="None for what was reused.")
    artifact_id: UUID | None
    progress: float = Field(ge=0, le=1, description="1 once it has ended.")
    error: JobError | None
    perplexity: float | None
    perplexity_increase: float | None = Field(description="Over the base, as a fraction.")
    size_bytes: int | None
    size_ratio: float | None
    decode_tokens_per_second: float | None
    mean_divergence: float | None = Field(None, description="From the base, in nats.")
    top1_agreement: float | None = Field(None, description="Share of positions where base and artifact agree.")
    verdict: Verdict | None = Field(description="Of the sweep's budget.")


class SweepView(Contract):
    """A sweep as lists show it."""

    id: UUID
    project: str
    name: str | None
    model: str
    state: SweepState
    counts: dict[JobState, int] = Field(description="Recipes by state; states that none is in are left out.")
    recipes: int
    reused: int = Field(description="How many artifacts were there already.")
    progress: float = Field(ge=0, le=1, description="Of all recipes together.")
    cancel_requested: bool
    created_at: datetime


SpreadFigure = Literal["perplexity", "perplexity_increase", "mean_divergence", "top1_agreement"]


class FigureSpread(Contract):
    """How far a figure lies apart over the calibrations of a sweep."""

    figure: SpreadFigure
    members: int = Field(description="Those of which it was measured.")
    minimum: float
    median: float
    maximum: float
    range: float = Field(description="Maximum less minimum.")


def spread_over(members: Sequence[SweepMember]) -> tuple[FigureSpread, ...]:
    """Of each figure that at least two members have; one that is not finite belongs to no spread."""
    spreads = []
    for figure in get_args(SpreadFigure):
        values = [value for member in members if (value := getattr(member, figure)) is not None and isfinite(value)]
        if len(values) > 1:
            spreads.append(
                FigureSpread(
                    figure=figure,
                    members=len(values),
                    minimum=min(values),
                    median=median(values),
                    maximum=max(values),
                    range=max(values) - min(values),
                )
            )
    return tuple(spreads)


class SweepDetails(SweepView):
    """A sweep with its recipes, and the front of its own artifacts."""

    spec: SweepSpec
    members: tuple[SweepMember, ...]
    front: Front | None = Field(description="Under the protocol of most members; none before anything was measured.")
    spread: tuple[FigureSpread, ...] = Field((), description="Of a sweep over calibrations, once two were measured.")
