"""One job after the other, each from claim to end.

The supervisor holds no transaction while work runs. Every write to a job names its epoch, so a supervisor that has
lost its lease can finish nothing. Whatever ends a job's stay here has ended its engine first.
"""

import errno
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from paredown.contracts.job import JobError, JobState
from paredown.core import jobs
from paredown.core.errors import CancelPending, DatabaseUnavailable, DiskFull, LeaseLost, PareError, WorkerInternal
from paredown.core.jobs import Claim
from paredown.worker.attempt import Attempt, Worker
from paredown.worker.blocking import T, retried
from paredown.worker.lease import CancelRequested, DrainRequested, Lease
from paredown.worker.workspace import remove_ended_jobs

log = structlog.get_logger(__name__)


def claim_all(worker: Worker, pool: str) -> int:
    """Run the pool's due jobs, one after the other, until none is left; returns how many.

    Raises DatabaseUnavailable between jobs.
    """
    done = 0
    remove_ended_jobs(worker.database, worker.settings)
    while not worker.draining():
        claimed_at = time.monotonic()
        with worker.database.transaction() as session:
            claim = jobs.claim(session, pool, worker.name, worker.settings)
        if claim is None:
            break
        run_job(worker, claim, claimed_at=claimed_at)
        done += 1
    return done


def run_job(worker: Worker, claim: Claim, *, claimed_at: float) -> None:
    """Bring one claimed job to its end here. `claimed_at` is time.monotonic() from before the claim.

    Every way out is written to the job's row, unless the lease is lost.
    """
    with structlog.contextvars.bound_contextvars(job_id=str(claim.job.id), epoch=claim.epoch):
        log.info("job_claimed", pool=claim.job.pool, model=claim.job.spec.model, recipe=claim.job.recipe_name)
        with Lease(worker.database, claim, worker.settings, claimed_at=claimed_at, draining=worker.draining) as lease:
            try:
                _run(worker, claim, lease, Attempt(worker, claim, lease, claimed_at=claimed_at))
            except LeaseLost as error:
                # Whoever holds the job now decides; nothing of ours is in their way, and the sweep takes what we leave.
                log.warning("job_abandoned", reason=error.detail)


def _run(worker: Worker, claim: Claim, lease: Lease, attempt: Attempt) -> None:
    job_id, epoch = claim.job.id, claim.epoch
    try:
        lease.check()
        artifact = attempt.make()
        view = _write(worker, lease, lambda session: jobs.finish(session, job_id, epoch, artifact))
        log.info("job_finished", artifact_id=str(view.id), verdict=view.verdict)
        attempt.discard_job()
    except (CancelRequested, CancelPending):
        _write(worker, lease, lambda session: jobs.acknowledge_cancel(session, job_id, epoch))
        log.info("job_cancelled")
        attempt.discard_upload()
        attempt.discard_job()
    except DrainRequested:
        attempt.keep_checkpoint()
        attempt.workspace.remove_output()
        _write(worker, lease, lambda session: jobs.release(session, job_id, epoch))
        log.info("job_released")
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - a bug ends the job, not the worker; _named logs it with its traceback
        problem = _named(error)
        attempt.workspace.remove_output()

        def fail(session: Session) -> JobState:
            # The row shows where it happened, also if that phase was too short for a heartbeat of its own.
            jobs.heartbeat(session, job_id, epoch, lease.progress, worker.settings)
            return jobs.fail(session, job_id, epoch, problem, worker.settings)

        state = _write(worker, lease, fail)
        log.warning("job_failed", state=state, code=problem.code, detail=problem.detail)
        attempt.discard_upload()
        if state is JobState.CANCELLED or (state is JobState.FAILED and not problem.retryable):
            attempt.discard_job()


def _named(error: Exception) -> JobError:
    """What the user is told of a failure."""
    if isinstance(error, PareError):
        return error.as_job_error()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("The worker's disk is full; free some space, then retry.").as_job_error()
    if isinstance(error, OperationalError):
        # A lock or statement timeout: another try is all that can be done about it.
        log.warning("database_timed_out", error=str(error))
        return DatabaseUnavailable("The database did not answer in time.").as_job_error()
    log.error("worker_internal", exc_info=error)
    return WorkerInternal("The worker failed for a reason it does not know; its log has the details.").as_job_error()


def _write(worker: Worker, lease: Lease, write: Callable[[Session], T]) -> T:
    """One transaction that ends our hold on the job, tried again while the lease lasts. Raises LeaseLost."""
    lease.stop()

    def transaction() -> T:
        with worker.database.transaction() as session:
            return write(session)

    lease.check_held()
    return retried(transaction, (DatabaseUnavailable, OperationalError), lease.check_held)
