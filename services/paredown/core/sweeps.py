"""Sweeps: one job for each recipe, or for each calibration of one recipe, made in one transaction and cancelled in one.
Their jobs alone say how far they are.

Jobs are written by core/jobs.py, as all others are. Every function takes the session of an open transaction.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pydantic import ValidationError
from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.orm import Session

from paredown.contracts.artifact import ArtifactView, Manifest
from paredown.contracts.gate import judge
from paredown.contracts.job import JobSpec, JobState, JobView, Plan, content_hash
from paredown.contracts.recipes import Recipe, recipe_hash, recipe_labels, recipe_name
from paredown.contracts.report import Verdict
from paredown.contracts.sweep import (
    PlannedRecipe,
    SweepDetails,
    SweepMember,
    SweepPlan,
    SweepSpec,
    SweepState,
    SweepView,
    spread_over,
)
from paredown.core import catalogue, idempotency, inputs, jobs
from paredown.core.artifact_queries import readable, report_number, select_views, view
from paredown.core.errors import NotFound, PareError, RecipeRefused, StateConflict
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.settings import Settings
from paredown.core.storable import check_storable
from paredown.core.tables import ArtifactRow, JobRow, ProjectRow, SweepRow

# Texts that never change under their address. Of all others only the worker that reads them knows what they hold.
_FIXED_TEXTS = ("builtin://", "dataset://", "calibration://")


@dataclass(frozen=True)
class Planned:
    """A recipe's job, and what its plan says."""

    spec: JobSpec
    pool: str
    seconds: float


@dataclass(frozen=True)
class Reused:
    """An artifact in the place of a job, and its verdict under this budget."""

    artifact_id: UUID
    verdict: Verdict | None


@dataclass(frozen=True)
class _Measured:
    """An artifact as lists show it, and what only its report says."""

    artifact: ArtifactView
    mean_divergence: float | None
    top1_agreement: float | None


def job_of(spec: SweepSpec, index: int) -> JobSpec:
    """Of a member. Raises RecipeRefused, which names the recipe, where the format cannot hold what it leaves."""
    recipe, calibration = spec.variants()[index]
    try:
        return spec.job(recipe, calibration)
    except ValidationError as error:
        raise blamed(RecipeRefused(sentence_of(error), field="recipe"), spec, index) from error


def sentence_of(error: ValidationError) -> str:
    """What a contract says of the first thing that is wrong."""
    return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ") + "."


def blamed(error: PareError, spec: SweepSpec, index: int) -> PareError:
    """The refusal of one member's job as one of the sweep: `recipe.0.bits` is `recipes.3.0.bits`."""
    part, _, rest = (error.field or "").partition(".")
    if spec.calibrations:
        error.detail = f"Calibration {index} ({spec.labels()[index]}): {error.detail}"
        index = 0 if part == "recipe" else index
    else:
        error.detail = f"Recipe {index} ({recipe_name(spec.all_recipes()[index])}): {error.detail}"
    if part == "recipe" or (part == "calibration" and spec.calibrations):
        error.field = ".".join(filter(None, [f"{part}s", str(index), rest]))
    return error


def total(spec: SweepSpec, plans: Sequence[Plan], reused: Sequence[bool]) -> SweepPlan:
    """The plans of all recipes as one; what is there already needs nothing."""
    made = [plan for plan, found in zip(plans, reused, strict=True) if not found]
    members = [
        PlannedRecipe(
            position=position,
            label=label,
            reused=found,
            pool=plan.pool,
            seconds=plan.seconds,
            memory_bytes=plan.memory_bytes,
            output_bytes=plan.output_bytes,
            size_ratio=plan.size_ratio,
        )
        for position, (label, plan, found) in enumerate(zip(spec.labels(), plans, reused, strict=True))
    ]
    return SweepPlan(
        recipes=len(plans),
        jobs=len(made),
        reused=len(plans) - len(made),
        seconds=sum(plan.seconds for plan in made),
        cost=sum(plan.cost for plan in made),
        currency=plans[0].currency,
        output_bytes=sum(plan.output_bytes for plan in made),
        memory_bytes=max((plan.memory_bytes for plan in made), default=0),
        members=tuple(members),
        warnings=tuple(dict.fromkeys(warning for plan in made for warning in plan.warnings)),
    )


def submit(
    session: Session,
    project_id: UUID,
    spec: SweepSpec,
    planned: Sequence[Planned],
    *,
    revision: str,
    settings: Settings,
    idempotency_key: str | None,
    asked: SweepSpec | None = None,
) -> tuple[SweepDetails, bool]:
    """Queue a sweep; the second value tells whether it is new. `revision` is the model's, as it was described; `asked`
    the spec as it was sent, where an alias in it was resolved.

    Raises IdempotencyMismatch, IdempotencyBusy, RequestInvalid as the submission of a job does.
    """
    body = spec.model_dump(mode="json")
    check_storable(body, "spec")
    sweep_id = uuid4()
    if idempotency_key is not None:
        first = idempotency.reserve(
            session, project_id, idempotency_key, _request_hash(asked or spec), sweep_id=sweep_id
        )
        if first != sweep_id:
            return get(session, project_id, first), False
    found = [reusable(session, project_id, each.spec, revision) if spec.reuse else None for each in planned]
    reused = {position: artifact for position, artifact in enumerate(found) if artifact}
    add(session, project_id, sweep_id, body, reused)
    pending = [position for position in range(len(planned)) if position not in reused]
    first_position = None
    if len(pending) > 1 and not _is_measured(session, project_id, planned[pending[0]], revision, settings):
        first_position = min(pending, key=lambda position: planned[position].seconds)
        pending.remove(first_position)
        pending.insert(0, first_position)
    after_id = None
    for position in pending:
        each = planned[position]
        job, _ = jobs.submit(
            session,
            project_id,
            each.spec,
            pool=each.pool,
            idempotency_key=None,
            membership=jobs.Membership(sweep_id, position, after_id),
        )
        if position == first_position:
            after_id = job.id
    return get(session, project_id, sweep_id), True


def replay(session: Session, project_id: UUID, spec: SweepSpec, idempotency_key: str) -> SweepDetails | None:
    """The sweep that was made with this key before. Raises IdempotencyMismatch when the key came with another one."""
    first = idempotency.known(session, project_id, idempotency_key, _request_hash(spec))
    return None if first is None else get(session, project_id, first)


def add(
    session: Session, project_id: UUID, sweep_id: UUID, body: dict[str, Any], reused: dict[int, Reused] | None = None
) -> None:
    """The row alone."""
    kept = {
        str(position): {"artifact_id": str(item.artifact_id), "verdict": item.verdict}
        for position, item in (reused or {}).items()
    }
    session.execute(insert(SweepRow).values(id=sweep_id, project_id=project_id, spec=body, reused=kept))


def cancel(session: Session, project_id: UUID, sweep_id: UUID) -> SweepDetails:
    """Cancel every job that has not ended. Asking again changes nothing. Raises NotFound, or StateConflict."""
    owned = select(SweepRow).where(SweepRow.id == sweep_id, SweepRow.project_id == project_id)
    row = session.scalar(owned.with_for_update())
    if row is None:
        raise _no_sweep(sweep_id)
    before = get(session, project_id, sweep_id)
    if before.state.terminal:
        raise StateConflict(f"The sweep is {before.state}; there is no job left to cancel.")
    going = [member.job_id for member in before.members if member.job_id and not member.state.terminal]
    jobs.request_cancels(session, project_id, going)
    cancelled = update(SweepRow).where(SweepRow.id == sweep_id, SweepRow.cancelled_at.is_(None))
    session.execute(cancelled.values(cancelled_at=func.now()).execution_options(synchronize_session=False))
    return get(session, project_id, sweep_id)


def get(session: Session, project_id: UUID | None, sweep_id: UUID) -> SweepDetails:
    """A sweep of this project; None stands for any project. Raises NotFound."""
    query = _select_sweeps().where(SweepRow.id == sweep_id).execution_options(populate_existing=True)
    if project_id is not None:
        query = query.where(SweepRow.project_id == project_id)
    found = session.execute(query).one_or_none()
    if found is None:
        raise _no_sweep(sweep_id)
    row, project = found
    spec = SweepSpec.model_validate(row.spec)
    members = _members(session, row, spec)
    artifacts = [member.artifact_id for member in members if member.artifact_id]
    front = catalogue.front_among(session, row.project_id, artifacts)
    # Figures of another protocol belong to no spread.
    alike = {point.artifact_id for point in front.points} if front and spec.calibrations else set()
    progress = sum(member.progress for member in members) / len(members)
    summary = _view(row, project, spec, Counter(member.state for member in members), progress)
    return SweepDetails(
        **{name: getattr(summary, name) for name in SweepView.model_fields},
        spec=spec,
        members=members,
        front=front,
        spread=spread_over([member for member in members if member.artifact_id and member.artifact_id in alike]),
    )


def list_sweeps(
    session: Session, project_id: UUID, *, after: str | None, limit: int
) -> tuple[list[SweepView], str | None]:
    """A page of the project's sweeps, newest first, and the cursor of the next page. Raises RequestInvalid."""
    query = _select_sweeps().where(SweepRow.project_id == project_id)
    rows, has_more = page(session, query, SweepRow.created_at, SweepRow.id, after=after, limit=limit)
    states: dict[UUID, Counter[JobState]] = {row.id: Counter() for row, _ in rows}
    running: Counter[UUID] = Counter()
    fraction = func.coalesce(func.sum(JobRow.progress["fraction"].as_float()), 0)
    query_jobs = select(JobRow.sweep_id, JobRow.state, func.count(), fraction).where(JobRow.sweep_id.in_(states))
    for sweep_id, state, count, done in session.execute(query_jobs.group_by(JobRow.sweep_id, JobRow.state)):
        states[sweep_id][JobState(state)] = count
        if state == JobState.RUNNING:
            running[sweep_id] = done
    views = []
    for row, project in rows:
        spec = SweepSpec.model_validate(row.spec)
        counts = states[row.id] + Counter(_reused_state(item) for item in row.reused.values())
        ended = sum(count for state, count in counts.items() if state.terminal)
        progress = (ended + running[row.id]) / max(counts.total(), 1)
        views.append(_view(row, project, spec, counts, progress))
    return views, encode_cursor(Place(views[-1].created_at, views[-1].id)) if has_more else None


def reusable(session: Session, project_id: UUID, spec: JobSpec, revision: str) -> Reused | None:
    """The newest artifact that the project can read and that this job would only make again.

    Equality is of what decides the result: the model's bytes (a pinned revision, or the artifact that it is), recipe,
    calibration, evaluation, format and number type. A budget that needs a figure which was not measured takes nothing.
    """
    calibration = spec.calibration if any(stage.needs_calibration for stage in spec.recipe) else None
    texts = [spec.evaluation.source, *([calibration.source] if calibration else [])]
    if not all(text.startswith(_FIXED_TEXTS) for text in texts):
        return None
    scheme, _, rest = spec.model.partition("://")
    if scheme == "artifact":
        same_model = [ArtifactRow.parent_id == UUID(rest)]
    else:
        pinned = ArtifactRow.manifest["base"]["revision"].astext == revision
        same_model = [ArtifactRow.model == spec.model, ArtifactRow.parent_id.is_(None), pinned]
    query = (
        select(ArtifactRow.manifest)
        .where(*same_model, *readable(project_id), ArtifactRow.recipe_hash == recipe_hash(spec.recipe))
        .where(ArtifactRow.format == spec.resolved_format)
        .order_by(ArtifactRow.created_at.desc(), ArtifactRow.id.desc())
    )
    for stored in session.scalars(query):
        manifest = Manifest.model_validate(stored)
        made = (manifest.calibration, manifest.evaluation, manifest.dtype)
        if made != (calibration, spec.evaluation, spec.dtype):
            continue
        gate = judge(spec.budget, manifest.report) if spec.budget else None
        if gate is None or all(check.value is not None for check in gate.checks):
            return Reused(manifest.artifact_id, gate.verdict if gate else None)
    return None


def _is_measured(session: Session, project_id: UUID, planned: Planned, revision: str, settings: Settings) -> bool:
    """Whether the base's figures are known, or are measured by no job of this sweep.

    If not, the job that is soonest done runs first and leaves them to the others, which would each measure the base
    again: with W workers W times. What the others lose meanwhile is no more than that job's own compression.
    """
    if planned.spec.model.startswith("artifact://"):
        return True
    fingerprint = inputs.known_fingerprint(session, project_id, planned.spec.model, revision)
    device = settings.pools[planned.pool].device
    if fingerprint is None:
        return False
    known = inputs.likely_baseline(session, fingerprint, planned.spec.evaluation, planned.spec.dtype, device)
    return known is not None


def _request_hash(spec: SweepSpec) -> str:
    """Never that of a job, whatever its fields."""
    return content_hash(["sweep", spec.model_dump(mode="json")])


def _no_sweep(sweep_id: UUID) -> NotFound:
    return NotFound(f"There is no sweep {sweep_id}.")


def _select_sweeps() -> Select[SweepRow, str]:
    return select(SweepRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == SweepRow.project_id)


def _view(row: SweepRow, project: str, spec: SweepSpec, counts: Counter[JobState], progress: float) -> SweepView:
    return SweepView(
        id=row.id,
        project=project,
        name=spec.name,
        model=spec.model,
        state=_state(row, counts),
        counts=dict(counts),
        recipes=counts.total(),
        reused=len(row.reused),
        progress=min(progress, 1.0),
        cancel_requested=row.cancelled_at is not None,
        created_at=row.created_at,
    )


def _state(row: SweepRow, counts: Counter[JobState]) -> SweepState:
    if all(state.terminal for state in counts):
        return SweepState.CANCELLED if row.cancelled_at else SweepState.FINISHED
    begun = any(state is not JobState.QUEUED for state in counts)
    return SweepState.RUNNING if begun else SweepState.QUEUED


def _reused_state(item: dict[str, Any]) -> JobState:
    return JobState.REJECTED if item["verdict"] == Verdict.MISSED else JobState.SUCCEEDED


def _members(session: Session, row: SweepRow, spec: SweepSpec) -> tuple[SweepMember, ...]:
    by_position = jobs.of_sweep(session, row.id)
    wanted = [job.artifact_id for job in by_position.values() if job.artifact_id]
    wanted += [UUID(item["artifact_id"]) for item in row.reused.values()]
    artifacts = _measured(session, row.project_id, wanted)
    recipes = [recipe for recipe, _ in spec.variants()]
    # A sweep of a release whose database sorted the places of a grid is in another order than its jobs.
    recipes = [by_position[place].spec.recipe if place in by_position else each for place, each in enumerate(recipes)]
    labels = spec.labels() if spec.calibrations else recipe_labels(recipes)
    members = []
    for position, (recipe, label) in enumerate(zip(recipes, labels, strict=True)):
        job = by_position.get(position)
        if job is not None:
            made = artifacts.get(job.artifact_id) if job.artifact_id else None
            members.append(_of_job(position, label, job, made))
        else:
            item = row.reused[str(position)]
            made = artifacts.get(UUID(item["artifact_id"]))
            members.append(_of_artifact(position, label, recipe, item, made))
    return tuple(members)


def _measured(session: Session, project_id: UUID, artifact_ids: Sequence[UUID]) -> dict[UUID, _Measured]:
    if not artifact_ids:
        return {}
    alive = (ArtifactRow.id.in_(artifact_ids), *readable(project_id))
    query = select(ArtifactRow.id, report_number("divergence", "mean"), report_number("divergence", "top1_agreement"))
    distances = {id_: (mean, agreement) for id_, mean, agreement in session.execute(query.where(*alive))}
    views = [view(*found) for found in session.execute(select_views().where(*alive))]
    return {made.id: _Measured(made, *distances[made.id]) for made in views if made.id in distances}


def _of_job(position: int, label: str, job: JobView, made: _Measured | None) -> SweepMember:
    fraction = job.progress.fraction if job.progress else 0.0
    return SweepMember(
        position=position,
        recipe_name=job.recipe_name,
        label=label,
        recipe_hash=job.recipe_hash,
        state=job.state,
        reused=False,
        job_id=job.id,
        progress=1.0 if job.state.terminal else fraction,
        error=job.error,
        verdict=made.artifact.verdict if made else None,
        **_figures(made),
    )


def _of_artifact(
    position: int, label: str, recipe: Recipe, item: dict[str, Any], made: _Measured | None
) -> SweepMember:
    """Where the artifact was deleted since, its figures are gone with it."""
    return SweepMember(
        position=position,
        recipe_name=recipe_name(recipe),
        label=label,
        recipe_hash=recipe_hash(recipe),
        state=_reused_state(item),
        reused=True,
        job_id=None,
        progress=1.0,
        error=None,
        verdict=item["verdict"],
        **_figures(made),
    )


def _figures(made: _Measured | None) -> dict[str, Any]:
    names = ("perplexity", "size_bytes", "size_ratio", "decode_tokens_per_second")
    if made is None:
        return dict.fromkeys(("artifact_id", "perplexity_increase", *names))
    artifact = made.artifact
    perplexity, base = artifact.perplexity, artifact.base_perplexity
    increase = perplexity / base - 1 if perplexity is not None and base else None
    return {
        "artifact_id": artifact.id,
        "perplexity_increase": increase,
        "mean_divergence": made.mean_divergence,
        "top1_agreement": made.top1_agreement,
        **{name: getattr(artifact, name) for name in names},
    }
