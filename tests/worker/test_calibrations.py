"""What jobs leave of their calibration, and jobs that take it: once for the same blocks, with the job or not at all."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.worker.conftest import MakeWorker, Submit

from paredown.contracts.calibration import CalibrationView
from paredown.contracts.job import JobState, JobView
from paredown.contracts.work import WorkOrder
from paredown.core import access, calibrations, jobs
from paredown.core.db import Database
from paredown.core.errors import NotFound, StateConflict
from paredown.core.storage import ObjectStore
from paredown.worker.supervisor import claim_all

WANDA = {"recipe": [{"method": "wanda"}], "calibration": {"samples": 2, "sequence_length": 16, "seed": 3}}
TOKENS = [list(range(16)), list(range(20, 36))]


def listed(database: Database, project: UUID) -> list[CalibrationView]:
    with database.transaction() as session:
        return calibrations.list_calibrations(session, project, after=None, limit=10)[0]


def state_of(database: Database, job: JobView) -> JobView:
    with database.transaction() as session:
        return jobs.get(session, None, job.id)


@pytest.fixture
def kept(database: Database, project: UUID, submit: Submit, make_worker: MakeWorker) -> CalibrationView:
    submit(**WANDA)
    claim_all(make_worker(tokens=TOKENS), "cpu")
    [view] = listed(database, project)
    return view


def test_the_same_tokens_are_one_calibration_and_rejected_jobs_leave_theirs(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, store: ObjectStore
) -> None:
    first = submit(**WANDA, budget={"max_size_ratio": 0.001})
    claim_all(make_worker(tokens=TOKENS), "cpu")
    assert state_of(database, first).state is JobState.REJECTED
    [view] = listed(database, project)
    assert (view.job_id, view.samples, view.sequence_length, view.seed) == (first.id, 2, 16, 3)
    assert (view.source, view.held_out_windows, view.vocab_size) == ("builtin://python-docs", 5, 272)
    submit(**WANDA)
    claim_all(make_worker(tokens=TOKENS), "cpu")
    # Rounding to nearest looks at no text; other tokens, and the same under another tokenizer, are others.
    submit()
    claim_all(make_worker(tokens=TOKENS), "cpu")
    assert listed(database, project) == [view]
    submit(**WANDA)
    claim_all(make_worker(tokens=[*reversed(TOKENS)]), "cpu")
    submit(**WANDA)
    claim_all(make_worker(tokens=TOKENS, tokenizer="others"), "cpu")
    assert len({other.id for other in listed(database, project)}) == 3
    assert len(list(store.list("calibrations/"))) == 3


def test_a_job_that_was_cancelled_leaves_none(
    database: Database, project: UUID, submit: Submit, make_worker: MakeWorker, store: ObjectStore
) -> None:
    job = submit(**WANDA)
    worker = make_worker(tokens=TOKENS)
    put_file = store.put_file

    def cancel_then_put(key: str, path: Path, sha256: str) -> None:
        put_file(key, path, sha256)
        if key.startswith("calibrations/"):
            with database.transaction() as session:
                jobs.request_cancel(session, project, job.id)

    worker.store.put_file = cancel_then_put  # type: ignore[method-assign]
    claim_all(worker, "cpu")
    assert state_of(database, job).state is JobState.CANCELLED
    assert listed(database, project) == []
    assert list(store.list("calibrations/")) == []


def test_a_job_that_takes_one_is_given_its_tokens_in_place_of_a_text(
    database: Database,
    project: UUID,
    submit: Submit,
    make_worker: MakeWorker,
    kept: CalibrationView,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    taking: dict[str, Any] = {**WANDA, "calibration": {**WANDA["calibration"], "source": kept.uri}}  # type: ignore[dict-item]
    job = submit(**taking)
    with database.transaction() as session, pytest.raises(StateConflict, match=str(job.id)):
        calibrations.delete(session, project, kept.id)
    claim_all(make_worker(tokens=TOKENS, keep_order=str(tmp_path / "order.json")), "cpu")
    assert state_of(database, job).state is JobState.SUCCEEDED
    order = WorkOrder.model_validate_json((tmp_path / "order.json").read_bytes())
    assert order.calibration_text is None
    assert order.calibration_tokens is not None
    assert order.calibration_tokens.stem == kept.file_sha256
    assert order.calibration_tokenizer_sha256 == kept.tokenizer_sha256
    assert listed(database, project) == [kept]

    # Bytes that changed in the store are not calibrated on.
    order.calibration_tokens.unlink()
    store.put_bytes(f"calibrations/{kept.id}/tokens.npy", b"x" * kept.size_bytes)
    damaged = submit(**taking)
    claim_all(make_worker(), "cpu")
    failed = state_of(database, damaged).error
    assert failed is not None
    assert (failed.code, failed.field) == ("text_unusable", "calibration.source")

    # Nor is what is deleted, or another project's.
    with database.transaction() as session:
        stranger = access.create_project(session, "other")
        with pytest.raises(NotFound):
            calibrations.delete(session, stranger, kept.id)
        calibrations.delete(session, project, kept.id)
    gone = submit(**taking)
    claim_all(make_worker(), "cpu")
    lost = state_of(database, gone).error
    assert lost is not None
    assert (lost.code, lost.field) == ("source_not_found", "calibration.source")
    # The same tokens can be kept again.
    submit(**WANDA)
    claim_all(make_worker(tokens=TOKENS), "cpu")
    [again] = listed(database, project)
    assert (again.tokens_sha256, again.id != kept.id) == (kept.tokens_sha256, True)
