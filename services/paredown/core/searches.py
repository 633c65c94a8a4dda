"""Searches in the database: their recipes, their trials, and the choice in the end.

A trial is an ordinary job, or an artifact that was there already. All that a search knows lies in its rows, so that any
dispatcher can go on with it at any moment; who goes on holds the search's row locked, so no trial is begun twice.
Every function takes the session of an open transaction.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pydantic import ValidationError
from sqlalchemy import Select, cast, func, insert, select, update
from sqlalchemy.orm import Session, defer

from paredown.contracts.job import JobSpec, JobState, Plan, content_hash
from paredown.contracts.recipes import Recipe, recipe_labels, recipe_name
from paredown.contracts.search import (
    Parameters,
    Rung,
    SearchDetails,
    SearchSpec,
    SearchState,
    SearchView,
    TrialView,
    losses_of,
    recipe_of,
)
from paredown.core import catalogue, idempotency, jobs, sweeps
from paredown.core.artifact_queries import report_number
from paredown.core.errors import CalibrationUnfit, GroupSizeUnfit, NotFound, PlanExceeded, RecipeRefused, StateConflict
from paredown.core.front import unbeaten
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import check_storable
from paredown.core.tables import ArtifactRow, JobRow, ProjectRow, SearchRow, TrialRow

# Of max_seconds, so that the survivors have time as well.
EXPLORING_SHARE = 0.6
_EXPLORING_PROGRESS = 0.7
_DIVERGENCE = report_number("divergence", "mean")

# What may be wrong with one recipe of a space and is no fault of the search.
_RULED_OUT = (RecipeRefused, GroupSizeUnfit, CalibrationUnfit, PlanExceeded)


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be tried."""

    parameters: Parameters
    size_ratio: float
    pool: str


# A trial, the state of its job, and its artifact as long as that is there.
FoundTrial = tuple[TrialRow, str | None, UUID | None]


@dataclass(frozen=True)
class Trial:
    """A trial as people see it, and what the search needs to go on: `settled` once its figures are entered."""

    view: TrialView
    candidate: int
    settled: bool


def candidates_of(spec: SearchSpec, plan: Callable[[JobSpec], Plan]) -> tuple[list[Candidate], int]:
    """The space's recipes that fit the model and whose planned bytes keep within the limit, and how many do not.

    Raises what is wrong with the search itself, and RecipeRefused where no recipe is left.
    """
    found: list[Candidate] = []
    combinations = spec.space.combinations()
    refusal: str | None = None
    smallest = math.inf
    for parameters in combinations:
        try:
            made = plan(spec.job(recipe_of(parameters), Rung.FULL))
        except _RULED_OUT as error:
            refusal = refusal or error.detail
            continue
        except ValidationError as error:
            refusal = refusal or sweeps.sentence_of(error)
            continue
        smallest = min(smallest, made.size_ratio)
        if spec.max_size_ratio is None or made.size_ratio <= spec.max_size_ratio:
            found.append(Candidate(parameters, made.size_ratio, made.pool))
    if not found and math.isfinite(smallest):
        raise RecipeRefused(
            f"No recipe of this space comes below {smallest:.1%} of the base bytes, and the limit is "
            f"{spec.max_size_ratio:.1%}; raise it, or widen the space.",
            field="max_size_ratio",
        )
    if not found:
        raise RecipeRefused(f"No recipe of this space fits the model: {refusal}", field="space")
    return found, len(combinations) - len(found)


def any_job(spec: SearchSpec) -> JobSpec:
    """A job of the space, for what all of them share. Raises RecipeRefused where the format can hold none of them."""
    refusal = ""
    for parameters in spec.space.combinations():
        try:
            return spec.job(recipe_of(parameters), Rung.FULL)
        except ValidationError as error:
            refusal = refusal or sweeps.sentence_of(error)
    raise RecipeRefused(f"No recipe of this space can be: {refusal}", field="space")


def submit(
    session: Session,
    project_id: UUID,
    spec: SearchSpec,
    candidates: Sequence[Candidate],
    ruled_out: int,
    *,
    revision: str,
    idempotency_key: str | None,
    asked: SearchSpec | None = None,
) -> tuple[SearchDetails, bool]:
    """Enter a search, which the dispatcher takes up; the second value tells whether it is new.

    `asked` is the spec as it was sent, where an alias in it was resolved.

    Raises IdempotencyMismatch, IdempotencyBusy.
    """
    body = spec.model_dump(mode="json")
    check_storable(body, "spec")
    search_id = uuid4()
    if idempotency_key is not None:
        first = idempotency.reserve(
            session, project_id, idempotency_key, _request_hash(asked or spec), search_id=search_id
        )
        if first != search_id:
            return get(session, project_id, first), False
    session.execute(
        insert(SearchRow).values(
            id=search_id,
            project_id=project_id,
            spec=body,
            revision=revision,
            candidates=[
                {"parameters": each.parameters, "size_ratio": each.size_ratio, "pool": each.pool} for each in candidates
            ],
            ruled_out=ruled_out,
            state=SearchState.EXPLORING,
        )
    )
    return get(session, project_id, search_id), True


def replay(session: Session, project_id: UUID, spec: SearchSpec, idempotency_key: str) -> SearchDetails | None:
    """The search that was made with this key before. Raises IdempotencyMismatch when it came with another one."""
    first = idempotency.known(session, project_id, idempotency_key, _request_hash(spec))
    return None if first is None else get(session, project_id, first)


def cancel(session: Session, project_id: UUID, search_id: UUID) -> SearchDetails:
    """End a search, and cancel its jobs that have not ended. Raises NotFound, or StateConflict."""
    row = session.scalar(
        select(SearchRow).where(SearchRow.id == search_id, SearchRow.project_id == project_id).with_for_update()
    )
    if row is None:
        raise _no_search(search_id)
    if SearchState(row.state).terminal:
        raise StateConflict(f"The search is {row.state} already.")
    settle(session, row)
    cancel_jobs(session, row)
    end(session, row, SearchState.CANCELLED, None, "It was cancelled.")
    return get(session, project_id, search_id)


def get(session: Session, project_id: UUID | None, search_id: UUID) -> SearchDetails:
    """A search of this project; None stands for any project. Raises NotFound."""
    query = _select_searches().where(SearchRow.id == search_id).execution_options(populate_existing=True)
    if project_id is not None:
        query = query.where(SearchRow.project_id == project_id)
    found = session.execute(query).one_or_none()
    if found is None:
        raise _no_search(search_id)
    row, project = found
    spec = SearchSpec.model_validate(row.spec)
    trials = [trial.view for trial in trials_of(session, row)]
    full = [trial.artifact_id for trial in trials if trial.rung is Rung.FULL and trial.artifact_id]
    summary = _view(row, project, spec, trials)
    return SearchDetails(
        **{name: getattr(summary, name) for name in SearchView.model_fields},
        spec=spec,
        candidates=len(row.candidates),
        ruled_out=row.ruled_out,
        members=tuple(trials),
        chosen=row.chosen,
        explanation=row.explanation,
        front=catalogue.front_among(session, row.project_id, full),
    )


def list_searches(
    session: Session, project_id: UUID, *, after: str | None, limit: int
) -> tuple[list[SearchView], str | None]:
    """A page of the project's searches, newest first, and the cursor of the next page. Raises RequestInvalid."""
    query = _select_searches().where(SearchRow.project_id == project_id)
    rows, has_more = page(session, query, SearchRow.created_at, SearchRow.id, after=after, limit=limit)
    found = _found_trials(session, [row for row, _ in rows])
    views = []
    for row, project in rows:
        trials = [trial.view for trial in _trials(row, found[row.id])]
        views.append(_view(row, project, SearchSpec.model_validate(row.spec), trials))
    return views, encode_cursor(Place(views[-1].created_at, views[-1].id)) if has_more else None


# The dispatcher


def open_searches(session: Session) -> list[UUID]:
    """Those that have not ended, oldest first."""
    query = select(SearchRow.id).where(SearchRow.finished_at.is_(None)).order_by(SearchRow.created_at)
    return list(session.scalars(query))


def take(session: Session, search_id: UUID) -> SearchRow | None:
    """The row, locked; None where it has ended or another dispatcher has it."""
    query = select(SearchRow).where(SearchRow.id == search_id, SearchRow.finished_at.is_(None))
    return session.scalar(query.with_for_update(skip_locked=True).execution_options(populate_existing=True))


def seconds_since_begin(session: Session, row: SearchRow) -> float:
    return float(session.execute(select(func.extract("epoch", func.now() - row.created_at))).scalar_one())


def settle(session: Session, row: SearchRow) -> None:
    """Write down what the jobs that have ended since measured. It stays when their artifacts are deleted."""
    ended = (
        select(TrialRow.number, ArtifactRow, _DIVERGENCE)
        .join(JobRow, JobRow.id == TrialRow.job_id)
        .outerjoin(ArtifactRow, ArtifactRow.job_id == JobRow.id)
        .where(TrialRow.search_id == row.id, TrialRow.figures.is_(None), JobRow.finished_at.is_not(None))
        .options(defer(ArtifactRow.manifest, raiseload=True))
    )
    for number, artifact, divergence in session.execute(ended).all():
        figures = _figures(artifact, divergence) if artifact is not None else {}
        own = (TrialRow.search_id == row.id, TrialRow.number == number)
        session.execute(
            update(TrialRow).where(*own).values(figures=figures).execution_options(synchronize_session=False)
        )


def begin(session: Session, row: SearchRow, spec: SearchSpec, rung: Rung, candidate: int, number: int) -> None:
    """Try a recipe: queue its job, or take the artifact that is there already."""
    chosen = Candidate(**row.candidates[candidate])
    tags = (f"search:{row.id}", *(("proxy",) if rung is Rung.PROXY else ()))
    job = spec.job(recipe_of(chosen.parameters), rung, tags=tags)
    values: dict[str, Any] = {"search_id": row.id, "number": number, "rung": rung, "candidate": candidate}
    reused = sweeps.reusable(session, row.project_id, job, row.revision) if spec.reuse else None
    if reused is not None:
        query = select(ArtifactRow, _DIVERGENCE).where(ArtifactRow.id == reused.artifact_id)
        query = query.options(defer(ArtifactRow.manifest, raiseload=True))
        values["figures"] = _figures(*session.execute(query).one())
    else:
        queued, _ = jobs.submit(session, row.project_id, job, pool=chosen.pool, idempotency_key=None)
        values["job_id"] = queued.id
    session.execute(insert(TrialRow).values(**values))


def advance_to(session: Session, row: SearchRow, state: SearchState) -> None:
    changed = update(SearchRow).where(SearchRow.id == row.id).values(state=state)
    session.execute(changed.execution_options(synchronize_session=False))


def end(session: Session, row: SearchRow, state: SearchState, chosen: int | None, explanation: str) -> None:
    values = {"state": state, "chosen": chosen, "explanation": explanation, "finished_at": func.now()}
    changed = update(SearchRow).where(SearchRow.id == row.id).values(**values)
    session.execute(changed.execution_options(synchronize_session=False))


def cancel_jobs(session: Session, row: SearchRow) -> None:
    """Ask every job of the search that has not ended to stop."""
    query = select(TrialRow.job_id).where(TrialRow.search_id == row.id, TrialRow.figures.is_(None))
    jobs.request_cancels(session, row.project_id, [job_id for job_id in session.scalars(query) if job_id])


# Choosing


def best_first(trials: Sequence[TrialView], spec: SearchSpec) -> list[TrialView]:
    """Measured trials of one rung: those within the limits first, of these those on the front, by the search's goal."""
    losses = losses_of(trials)

    def rank(trial: TrialView) -> tuple[bool, bool, float, float]:
        size, loss = float(trial.size_bytes or 0), losses[trial.number]
        goal = (loss, size) if spec.minimize == "loss" else (size, loss)
        return (not trial.within_limits, not trial.on_front, *goal)

    return sorted((trial for trial in trials if trial.number in losses), key=rank)


def choice(trials: Sequence[TrialView], spec: SearchSpec) -> tuple[int | None, str]:
    """The trial that serves the goal best within the limits, and why, in a sentence."""
    full = [trial for trial in trials if trial.rung is Rung.FULL]
    ranked = best_first(full, spec)
    limits = _limits(spec)
    if not ranked:
        return None, "No recipe was measured in full, so there is nothing to choose from."
    best = ranked[0]
    if not best.within_limits:
        return None, (
            f"None of the {len(ranked)} recipes measured in full is within {limits}; {best.label} comes nearest, "
            f"with {_figures_said(best)}."
        )
    within = sum(bool(trial.within_limits) for trial in ranked)
    least = "loses least" if spec.minimize == "loss" else "has the fewest bytes"
    recipes = "1 recipe" if len(ranked) == 1 else f"{len(ranked)} recipes"
    return best.number, (
        f"{best.label} {least} of the {within} within {limits}, among {recipes} measured in full: "
        f"{_figures_said(best)}."
    )


def _limits(spec: SearchSpec) -> str:
    parts = []
    if spec.max_size_ratio is not None:
        parts.append(f"{spec.max_size_ratio:.1%} of the base bytes")
    if spec.max_perplexity_increase is not None:
        parts.append(f"{spec.max_perplexity_increase:+.1%} perplexity")
    return " and ".join(parts)


def _figures_said(trial: TrialView) -> str:
    parts = [f"{trial.size_ratio:.1%} of the base bytes"]
    if trial.perplexity_increase is not None:
        parts.append(f"perplexity {trial.perplexity_increase:+.1%}")
    else:
        parts.append(f"perplexity {trial.perplexity:.3f}")
    if trial.divergence is not None:
        parts.append(f"mean divergence {trial.divergence:.4f} nats")
    return ", ".join(parts)


# Reading


def trials_of(session: Session, row: SearchRow) -> list[Trial]:
    """In the order in which they were begun."""
    return _trials(row, _found_trials(session, [row])[row.id])


def _found_trials(session: Session, rows: Sequence[SearchRow]) -> dict[UUID, list[FoundTrial]]:
    """Of several searches at once."""
    artifact_id = cast(TrialRow.figures["artifact_id"].astext, ArtifactRow.id.type)
    alive = select(ArtifactRow.id).where(ArtifactRow.id == artifact_id, ArtifactRow.deleted_at.is_(None))
    query = (
        select(TrialRow, JobRow.state, alive.correlate(TrialRow).scalar_subquery())
        .outerjoin(JobRow, JobRow.id == TrialRow.job_id)
        .where(TrialRow.search_id.in_([row.id for row in rows]))
        .order_by(TrialRow.number)
        .execution_options(populate_existing=True)
    )
    found: dict[UUID, list[FoundTrial]] = {row.id: [] for row in rows}
    for trial, state, artifact in session.execute(query):
        found[trial.search_id].append((trial, state, artifact))
    return found


def _trials(row: SearchRow, found: Sequence[FoundTrial]) -> list[Trial]:
    spec = SearchSpec.model_validate(row.spec)
    recipes = [recipe_of(row.candidates[trial.candidate]["parameters"]) for trial, _, _ in found]
    # Each candidate may be there twice, once on each rung.
    tried = list(dict.fromkeys(recipes))
    labels = dict(zip(tried, recipe_labels(tried), strict=True))
    views = [
        _view_of(row, spec, trial, recipe, labels[recipe], state, artifact)
        for recipe, (trial, state, artifact) in zip(recipes, found, strict=True)
    ]
    on_front = set[int]()
    for rung in Rung:
        losses = losses_of([view for view in views if view.rung is rung])
        points = [(loss, float(views[number].size_bytes or 0)) for number, loss in losses.items()]
        on_front |= {number for number, best in zip(losses, unbeaten(points), strict=True) if best}
    return [
        Trial(view.model_copy(update={"on_front": view.number in on_front}), trial.candidate, trial.figures is not None)
        for view, (trial, _, _) in zip(views, found, strict=True)
    ]


def _view_of(
    row: SearchRow,
    spec: SearchSpec,
    trial: TrialRow,
    recipe: Recipe,
    label: str,
    job_state: str | None,
    artifact_id: UUID | None,
) -> TrialView:
    figures = dict(trial.figures or {})
    figures.pop("artifact_id", None)
    numbers = {
        name: figures.get(name)
        for name in ("perplexity", "perplexity_increase", "divergence", "size_bytes", "size_ratio")
    }
    return TrialView(
        number=trial.number,
        rung=Rung(trial.rung),
        recipe=recipe,
        recipe_name=recipe_name(recipe),
        label=label,
        predicted_size_ratio=row.candidates[trial.candidate]["size_ratio"],
        state=JobState(job_state) if job_state else JobState.SUCCEEDED,
        reused=trial.job_id is None,
        job_id=trial.job_id,
        artifact_id=artifact_id,
        within_limits=_within(spec, figures) if figures else None,
        on_front=False,
        **numbers,
    )


def _within(spec: SearchSpec, figures: dict[str, Any]) -> bool:
    if spec.max_size_ratio is not None and figures["size_ratio"] > spec.max_size_ratio:
        return False
    if spec.max_perplexity_increase is None:
        return True
    increase = figures["perplexity_increase"]
    return increase is not None and increase <= spec.max_perplexity_increase


def _figures(artifact: ArtifactRow, divergence: float | None) -> dict[str, Any]:
    """What counts of an artifact. A perplexity that is not finite is no figure to choose by."""
    base, perplexity = artifact.base_perplexity, artifact.perplexity
    if perplexity is not None and not math.isfinite(perplexity):
        perplexity = None
    return {
        "artifact_id": str(artifact.id),
        "perplexity": perplexity,
        "perplexity_increase": perplexity / base - 1 if perplexity is not None and base else None,
        "divergence": divergence if divergence is not None and math.isfinite(divergence) else None,
        "size_bytes": artifact.size_bytes,
        "size_ratio": artifact.size_bytes / artifact.base_bytes,
    }


def _request_hash(spec: SearchSpec) -> str:
    """Never that of a job or a sweep, whatever its fields."""
    return content_hash(["search", spec.model_dump(mode="json")])


def _no_search(search_id: UUID) -> NotFound:
    return NotFound(f"There is no search {search_id}.")


def _select_searches() -> Select[SearchRow, str]:
    return select(SearchRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == SearchRow.project_id)


def _view(row: SearchRow, project: str, spec: SearchSpec, trials: Sequence[TrialView]) -> SearchView:
    state = SearchState(row.state)
    ended = {rung: sum(trial.rung is rung and trial.state.terminal for trial in trials) for rung in Rung}
    wanted = min(spec.max_trials, len(row.candidates))
    if state.terminal:
        progress = 1.0
    elif spec.proxy is None:
        progress = ended[Rung.FULL] / wanted
    else:
        survivors = min(spec.survivors, wanted)
        progress = _EXPLORING_PROGRESS * ended[Rung.PROXY] / wanted
        progress += (1 - _EXPLORING_PROGRESS) * ended[Rung.FULL] / survivors
    chosen = next((trial.label for trial in trials if trial.number == row.chosen), None)
    return SearchView(
        id=row.id,
        project=project,
        name=spec.name,
        model=spec.model,
        state=state,
        minimize=spec.minimize,
        trials=len(trials),
        progress=min(progress, 1.0),
        chosen_recipe=chosen,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
