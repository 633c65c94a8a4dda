"""Reading jobs: what people see of them, and what waits for whom. core/jobs.py writes them and offers these too."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from paredown.contracts.job import JobState, JobView
from paredown.core.errors import NotFound
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import check_storable
from paredown.core.tables import ArtifactRow, JobRow, ProjectRow


def get(session: Session, project_id: UUID | None, job_id: UUID) -> JobView:
    """A job of this project; None stands for any project and is for the services. Raises NotFound."""
    query = _select_views().where(JobRow.id == job_id).execution_options(populate_existing=True)
    if project_id is not None:
        query = query.where(JobRow.project_id == project_id)
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"There is no job {job_id}.")
    return _view(*found)


def list_jobs(
    session: Session,
    project_id: UUID,
    *,
    states: Collection[JobState] = (),
    model: str | None = None,
    pool: str | None = None,
    method: str | None = None,
    sweep: UUID | None = None,
    after: str | None,
    limit: int,
) -> tuple[list[JobView], str | None]:
    """A page of the project's jobs, newest first, and the cursor of the next page. Raises RequestInvalid."""
    query = _select_views().where(JobRow.project_id == project_id)
    if states:
        query = query.where(JobRow.state.in_(states))
    if model is not None:
        check_storable(model, "model")
        query = query.where(JobRow.model == model)
    if pool is not None:
        check_storable(pool, "pool")
        query = query.where(JobRow.pool == pool)
    if method is not None:
        check_storable(method, "method")
        query = query.where(JobRow.spec.contains({"recipe": [{"method": method}]}))
    if sweep is not None:
        query = query.where(JobRow.sweep_id == sweep)
    rows, has_more = page(session, query, JobRow.created_at, JobRow.id, after=after, limit=limit)
    views = [_view(*row) for row in rows]
    return views, encode_cursor(Place(views[-1].created_at, views[-1].id)) if has_more else None


def of_sweep(session: Session, sweep_id: UUID) -> dict[int, JobView]:
    """Position → job."""
    query = _select_views().where(JobRow.sweep_id == sweep_id).execution_options(populate_existing=True)
    found = session.execute(query)
    return {
        row.sweep_position: _view(row, project, artifact_id)
        for row, project, artifact_id in found
        if row.sweep_position is not None
    }


def in_state(*states: JobState) -> ColumnElement[bool]:
    """The state as a literal: a prepared statement with a parameter could not use the indexes of one state's rows."""
    return JobRow.state.in_([literal(state.value, literal_execute=True) for state in states])


def is_due() -> tuple[ColumnElement[bool], ...]:
    first = aliased(JobRow)
    open_first = select(first.id).where(first.id == JobRow.after_id, first.finished_at.is_(None))
    return (
        in_state(JobState.QUEUED),
        JobRow.run_at <= func.now(),
        or_(JobRow.deadline_at.is_(None), JobRow.deadline_at > func.now()),
        or_(JobRow.after_id.is_(None), ~open_first.exists()),
    )


def due_pools(session: Session) -> dict[str, int]:
    """Pool → number of queued jobs that may start now."""
    query = select(JobRow.pool, func.count()).where(*is_due()).group_by(JobRow.pool)
    return {row[0]: row[1] for row in session.execute(query)}


def oldest_due_seconds(session: Session) -> dict[str, float]:
    """Pool → how long its longest waiting job has been due."""
    waited = func.extract("epoch", func.now() - func.min(JobRow.run_at))
    query = select(JobRow.pool, waited).where(*is_due()).group_by(JobRow.pool)
    return {pool: float(seconds) for pool, seconds in session.execute(query)}


def counts(session: Session) -> dict[tuple[str, JobState], int]:
    """(pool, state) → number of jobs."""
    query = select(JobRow.pool, JobRow.state, func.count()).group_by(JobRow.pool, JobRow.state)
    return {(pool, JobState(state)): number for pool, state, number in session.execute(query)}


def _select_views() -> Select[JobRow, str, UUID | None]:
    alive = (ArtifactRow.job_id == JobRow.id) & ArtifactRow.deleted_at.is_(None)
    return (
        select(JobRow, ProjectRow.name, ArtifactRow.id)
        .join(ProjectRow, ProjectRow.id == JobRow.project_id)
        .outerjoin(ArtifactRow, alive)
    )


def _view(row: JobRow, project: str, artifact_id: UUID | None) -> JobView:
    return JobView.model_validate(
        {
            "id": row.id,
            "project": project,
            "sweep_id": row.sweep_id,
            "state": row.state,
            "phase": row.phase,
            "progress": row.progress,
            "spec": row.spec,
            "recipe_hash": row.recipe_hash,
            "recipe_name": row.recipe_name,
            "pool": row.pool,
            "priority": row.priority,
            "epoch": row.epoch,
            "failures": row.failures,
            "cancel_requested": row.cancel_requested,
            "error": row.error,
            "canary": row.canary,
            "artifact_id": artifact_id,
            "created_at": row.created_at,
            "run_at": row.run_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "deadline_at": row.deadline_at,
        }
    )
