"""Calibrations: the token blocks that jobs drew, each once for a project, for other jobs to take as they are.

Only core/jobs.py adds one, in the transaction that ends the job. Every function takes the session of an open
transaction.
"""

from dataclasses import dataclass, field
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from paredown.contracts.calibration import CalibrationView, Coverage
from paredown.contracts.job import CALIBRATION_SCHEME, Calibration, JobState
from paredown.core.errors import CalibrationUnfit, NotFound, StateConflict, TokenizerDiffers
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import storable
from paredown.core.tables import CalibrationRow, JobRow, ProjectRow, SearchRow

# What is drawn; a stored calibration has it already.
_DRAWN = ("samples", "sequence_length", "seed")


@dataclass(frozen=True)
class NewCalibration:
    """What a worker hands over with a finished job. The file lies in the store already."""

    tokens_sha256: str
    settings: Calibration
    source_sha256: str
    tokenizer_sha256: str
    held_out_windows: int | None
    coverage: Coverage
    model: str
    model_fingerprint: str
    model_type: str
    vocab_size: int
    size_bytes: int
    file_sha256: str
    id: UUID = field(default_factory=uuid4)

    @property
    def storage_key(self) -> str:
        return storage_key(self.id)


@dataclass(frozen=True)
class StoredCalibration:
    """Where the blocks lie, and how to know that they are still the same."""

    storage_key: str
    size_bytes: int
    file_sha256: str
    tokenizer_sha256: str


def storage_key(calibration_id: UUID) -> str:
    """A place of its own for each: it is removed with its row, and no other row can need it."""
    return f"calibrations/{calibration_id}/tokens.npy"


def add(session: Session, job: JobRow, new: NewCalibration) -> None:
    """Only core/jobs.py calls this. Where another job has left the same blocks meanwhile, theirs stay."""
    values = insert(CalibrationRow).values(
        id=new.id,
        project_id=job.project_id,
        job_id=job.id,
        tokens_sha256=new.tokens_sha256,
        **{name: getattr(new.settings, name) for name in _DRAWN},
        source=storable(new.settings.source),
        source_sha256=new.source_sha256,
        tokenizer_sha256=new.tokenizer_sha256,
        held_out_windows=new.held_out_windows,
        coverage=storable({name: list(tokens) for name, tokens in new.coverage.items()}),
        model=new.model,
        model_fingerprint=new.model_fingerprint,
        model_type=new.model_type,
        vocab_size=new.vocab_size,
        size_bytes=new.size_bytes,
        file_sha256=new.file_sha256,
        storage_key=new.storage_key,
    )
    session.execute(values.on_conflict_do_nothing())


def is_known(
    session: Session, project_id: UUID, tokens_sha256: str, sequence_length: int, tokenizer_sha256: str
) -> bool:
    """Whether the project has these very blocks, so that they need not be stored again."""
    same = (
        CalibrationRow.project_id == project_id,
        CalibrationRow.tokens_sha256 == tokens_sha256,
        CalibrationRow.sequence_length == sequence_length,
        CalibrationRow.tokenizer_sha256 == tokenizer_sha256,
        CalibrationRow.deleted_at.is_(None),
    )
    return session.scalar(select(CalibrationRow.id).where(*same)) is not None


def get(session: Session, project_id: UUID, calibration_id: UUID) -> CalibrationView:
    """Raises NotFound, also for another project's."""
    found = session.execute(_select_views(project_id).where(CalibrationRow.id == calibration_id)).one_or_none()
    if found is None:
        raise _no_calibration(calibration_id)
    return _view(*found)


def stored(session: Session, project_id: UUID, calibration_id: UUID) -> StoredCalibration:
    """Raises NotFound."""
    owned = (*_owned(project_id), CalibrationRow.id == calibration_id)
    row = session.scalar(select(CalibrationRow).where(*owned).execution_options(populate_existing=True))
    if row is None:
        raise _no_calibration(calibration_id)
    return StoredCalibration(row.storage_key, row.size_bytes, row.file_sha256, row.tokenizer_sha256)


def list_calibrations(
    session: Session, project_id: UUID, *, tokens_sha256: str | None = None, after: str | None, limit: int
) -> tuple[list[CalibrationView], str | None]:
    """A page of the project's calibrations, newest first, and the cursor of the next page. Raises RequestInvalid."""
    query = _select_views(project_id)
    if tokens_sha256 is not None:
        query = query.where(CalibrationRow.tokens_sha256 == tokens_sha256)
    rows, has_more = page(session, query, CalibrationRow.created_at, CalibrationRow.id, after=after, limit=limit)
    views = [_view(*row) for row in rows]
    return views, encode_cursor(Place(views[-1].created_at, views[-1].id)) if has_more else None


def delete(session: Session, project_id: UUID, calibration_id: UUID) -> str:
    """Forget one; returns its key in the store, for the caller to remove once this is committed.

    Raises NotFound, or StateConflict while a job or a search that has not ended takes it.
    """
    owned = select(CalibrationRow).where(*_owned(project_id), CalibrationRow.id == calibration_id)
    row = session.scalar(owned.with_for_update())
    if row is None:
        raise _no_calibration(calibration_id)
    if needed := _needed_by(session, project_id, calibration_id):
        raise StateConflict(f"{needed} takes this calibration and has not ended; cancel it, or wait for its end.")
    marked = update(CalibrationRow).where(CalibrationRow.id == calibration_id).values(deleted_at=func.now())
    session.execute(marked.execution_options(synchronize_session=False))
    return row.storage_key


def resolved(session: Session, project_id: UUID, calibration: Calibration) -> Calibration:
    """The settings with what a calibration:// was drawn with; others as they are.

    One that is deleted is resolved too, so that a request is the same when it is sent again; one that the project never
    had is left to `check`. Raises CalibrationUnfit where other sizes or another seed are asked for than it has.
    """
    if calibration.stored_id is None:
        return calibration
    mine = (CalibrationRow.id == calibration.stored_id, CalibrationRow.project_id == project_id)
    row = session.scalar(select(CalibrationRow).where(*mine))
    if row is None:
        return calibration
    for name in _DRAWN:
        asked, drawn = getattr(calibration, name), getattr(row, name)
        if asked not in (drawn, Calibration.model_fields[name].default):
            raise CalibrationUnfit(
                f"{calibration.source} has {name} {drawn}, and cannot be taken with {asked}; leave {name} out.",
                field=f"calibration.{name}",
            )
    drawn_with = {name: getattr(row, name) for name in _DRAWN}
    return calibration.model_copy(update={"source": f"{CALIBRATION_SCHEME}{row.id}", **drawn_with})


def check(session: Session, project_id: UUID, calibration_id: UUID, model_fingerprint: str | None) -> None:
    """Refuse what can be known not to fit before the model's files are read.

    The tokenizer of a model is known where the project has a calibration that was drawn with it. Raises NotFound,
    TokenizerDiffers.
    """
    mine = stored(session, project_id, calibration_id)
    if model_fingerprint is None:
        return
    of_model = select(CalibrationRow.tokenizer_sha256).where(
        CalibrationRow.project_id == project_id, CalibrationRow.model_fingerprint == model_fingerprint
    )
    tokenizers = set(session.scalars(of_model.distinct()))
    if tokenizers and mine.tokenizer_sha256 not in tokenizers:
        raise TokenizerDiffers(
            f"{CALIBRATION_SCHEME}{calibration_id} was drawn with another tokenizer than this model's, so its tokens "
            "mean something else there. Name the text that they were drawn from, or a calibration of a model with this "
            "tokenizer.",
            field="calibration.source",
        )


def is_kept(calibration_id: UUID) -> ColumnElement[bool]:
    """Whether the files of this calibration are still needed."""
    return select(CalibrationRow.id).where(*_alive(), CalibrationRow.id == calibration_id).exists()


def _needed_by(session: Session, project_id: UUID, calibration_id: UUID) -> str | None:
    uri = f"{CALIBRATION_SCHEME}{calibration_id}"
    taking = (JobRow.spec["calibration"]["source"].astext == uri, JobRow.state.in_([JobState.QUEUED, JobState.RUNNING]))
    job = session.scalar(select(JobRow.id).where(JobRow.project_id == project_id, *taking).limit(1))
    if job is not None:
        return f"Job {job}"
    searching = (SearchRow.spec["calibration"]["source"].astext == uri, SearchRow.finished_at.is_(None))
    search = session.scalar(select(SearchRow.id).where(SearchRow.project_id == project_id, *searching).limit(1))
    return f"Search {search}" if search is not None else None


def _alive() -> tuple[ColumnElement[bool], ...]:
    return (CalibrationRow.deleted_at.is_(None),)


def _owned(project_id: UUID) -> tuple[ColumnElement[bool], ...]:
    return (*_alive(), CalibrationRow.project_id == project_id)


def _select_views(project_id: UUID) -> Select[CalibrationRow, str]:
    joined = select(CalibrationRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == CalibrationRow.project_id)
    return joined.where(*_owned(project_id)).execution_options(populate_existing=True)


def _view(row: CalibrationRow, project: str) -> CalibrationView:
    named = {name: getattr(row, name) for name in CalibrationView.model_fields if name != "project"}
    return CalibrationView.model_validate({**named, "project": project})


def _no_calibration(calibration_id: UUID) -> NotFound:
    return NotFound(f"There is no calibration {calibration_id}.")
