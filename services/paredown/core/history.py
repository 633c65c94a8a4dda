"""What finished jobs took beside what was planned for them, and what that makes of the next plan.

A plan's formulas (core/estimates.py) know sizes, not the machine. Of each job that one worker carried through, what the
formulas said and what was measured are kept; the median of their ratios over the latest such jobs corrects a new plan,
and their spread is its interval. Ratios are of the bare formulas, so corrections do not feed on each other.
Units: seconds, bytes.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from paredown.contracts.job import Interval, Plan, PlanOutcome, PlanOutcomes
from paredown.contracts.recipes import Recipe
from paredown.contracts.report import Report
from paredown.core.estimates import DOWNLOAD_BYTES_PER_SECOND
from paredown.core.tables import JobRow, PlanOutcomeRow

# Of the formulas: what they said under another version corrects nothing. On a GPU, memory is the GPU's alone: the rest
# of the process is not measured there.
FORMULAS = 3
FORMULAS_ON_GPU = 4
# Jobs whose ratios are looked at, and how many there must be to correct anything.
LATEST = 20
FEWEST = 3
# Where no history corrects it, and how narrow an interval may get: as shares of the figure. Sizes follow from shapes;
# two cores with AVX2 alone take three times as long as those that the formulas were measured on.
_UNKNOWN = {"seconds": (0.5, 3.5), "memory_bytes": (0.75, 1.25), "output_bytes": (0.98, 1.02)}
# No history has it: it is added up from sizes, some of them upper bounds (the packaged model, gptq-4: 0.64 was taken).
_DISK = (0.6, 1.05)
_NARROWEST = {"seconds": 0.1, "memory_bytes": 0.05, "output_bytes": 0.001}
_FIGURES = tuple(_NARROWEST)


@dataclass(frozen=True)
class Took:
    """The plan that a worker made of a job, and its seconds from when the model was at hand."""

    plan: Plan
    seconds: float


@dataclass(frozen=True)
class Ratios:
    """Measured over planned, of each figure, newest job first."""

    seconds: tuple[float, ...] = ()
    memory_bytes: tuple[float, ...] = ()
    output_bytes: tuple[float, ...] = ()


def record(session: Session, job: JobRow, recipe: Recipe, took: Took, report: Report) -> None:
    """Keep what a job took; only of one that a single worker carried through, whose time was all its own."""
    if job.epoch != 1:
        return
    plan = took.plan
    session.execute(
        insert(PlanOutcomeRow).values(
            job_id=job.id,
            project_id=job.project_id,
            pool=job.pool,
            methods=_methods(recipe),
            formulas=_formulas(plan),
            planned_seconds=plan.seconds - download_seconds(plan),
            seconds=took.seconds,
            planned_memory_bytes=plan.device_memory_bytes or plan.memory_bytes,
            memory_bytes=report.peak_memory_bytes,
            planned_output_bytes=plan.output_bytes,
            output_bytes=report.size_bytes,
        )
    )


def ratios(session: Session, plan: Plan, recipe: Recipe) -> Ratios:
    """Of the latest jobs of the plan's pool with the same methods; where those are too few, of all of the pool."""
    query = (
        select(PlanOutcomeRow)
        .where(PlanOutcomeRow.pool == plan.pool, PlanOutcomeRow.formulas == _formulas(plan))
        .order_by(PlanOutcomeRow.created_at.desc(), PlanOutcomeRow.job_id.desc())
        .limit(LATEST)
    )
    alike = list(session.scalars(query.where(PlanOutcomeRow.methods == _methods(recipe))))
    rows = alike if len(alike) >= FEWEST else list(session.scalars(query))
    return Ratios(**{figure: tuple(_ratios(rows, figure)) for figure in _FIGURES})


def corrected(plan: Plan, found: Ratios) -> Plan:
    """A plan of the bare formulas with figures and intervals as the history has them."""
    if len(found.seconds) < FEWEST:
        found = Ratios()
    download = download_seconds(plan)
    seconds, seconds_interval = _judged(plan.seconds - download, found.seconds, "seconds", download)
    # Where the work is done on a GPU, that part of the memory is corrected, and the rest is added.
    device = plan.device_memory_bytes
    beside = 0 if device is None else plan.memory_bytes - device
    worked, worked_interval = _judged(plan.memory_bytes - beside, found.memory_bytes, "memory_bytes")
    output, output_interval = _judged(plan.output_bytes, found.output_bytes, "output_bytes")
    price = plan.cost / plan.seconds
    return plan.model_copy(
        update={
            "history_jobs": len(found.seconds),
            "seconds": seconds,
            "seconds_interval": seconds_interval,
            "memory_bytes": beside + round(worked),
            "memory_interval": Interval(low=beside + worked_interval.low, high=beside + worked_interval.high),
            "device_memory_bytes": None if device is None else round(worked),
            "device_memory_interval": None if device is None else worked_interval,
            "disk_interval": Interval(low=plan.disk_bytes * _DISK[0], high=plan.disk_bytes * _DISK[1]),
            "output_bytes": round(output),
            "output_interval": output_interval,
            "size_ratio": output / plan.base_bytes,
            "cost": price * seconds,
            "cost_interval": Interval(low=price * seconds_interval.low, high=price * seconds_interval.high),
        }
    )


def latest(session: Session, project_id: UUID, limit: int) -> PlanOutcomes:
    """The project's latest jobs, planned beside measured, newest first."""
    query = (
        select(PlanOutcomeRow, JobRow.recipe_name)
        .join(JobRow, JobRow.id == PlanOutcomeRow.job_id)
        .where(PlanOutcomeRow.project_id == project_id)
        .order_by(PlanOutcomeRow.created_at.desc(), PlanOutcomeRow.job_id.desc())
        .limit(limit)
    )
    return PlanOutcomes(
        items=tuple(
            PlanOutcome(
                job_id=row.job_id,
                recipe_name=name,
                pool=row.pool,
                planned_seconds=row.planned_seconds,
                seconds=row.seconds,
                planned_memory_bytes=row.planned_memory_bytes,
                memory_bytes=row.memory_bytes,
                planned_output_bytes=row.planned_output_bytes,
                output_bytes=row.output_bytes,
                created_at=row.created_at,
            )
            for row, name in session.execute(query)
        )
    )


def _formulas(plan: Plan) -> int:
    return FORMULAS if plan.device_memory_bytes is None else FORMULAS_ON_GPU


def _methods(recipe: Recipe) -> list[str]:
    return [stage.method for stage in recipe]


def _ratios(rows: Iterable[PlanOutcomeRow], figure: str) -> Iterable[float]:
    for row in rows:
        planned, measured = getattr(row, f"planned_{figure}"), getattr(row, figure)
        if planned > 0 and measured > 0:
            yield measured / planned


def _judged(planned: float, found: Sequence[float], figure: str, known: float = 0.0) -> tuple[float, Interval]:
    """The figure and its interval; `known` is a part of it that no history corrects."""
    if not found:
        low, high = _UNKNOWN[figure]
        return known + planned, Interval(low=known + planned * low, high=known + planned * high)
    middle = statistics.median(found)
    slack = _NARROWEST[figure] * middle
    low, high = min(_quantile(found, 0.1), middle - slack), max(_quantile(found, 0.9), middle + slack)
    return known + planned * middle, Interval(low=known + planned * low, high=known + planned * high)


def _quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the closest ranks."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def download_seconds(plan: Plan) -> float:
    return plan.download_bytes / DOWNLOAD_BYTES_PER_SECOND
