"""Directories of one job on this machine. Each epoch has its own, so a supervisor that lost its job disturbs nobody.

    work_dir/{job}/{epoch}/             working and home directory of the engine: order.json, engine.log, tmp/
    work_dir/{job}/{epoch}/checkpoint/  the engine's checkpoint
    work_dir/{job}/{epoch}/output/      the artifact's files

The engine may run as a user who owns nothing: the directories above its own can be passed through by anyone.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import structlog

from paredown.contracts.job import JobState
from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import NotFound
from paredown.core.settings import Settings

log = structlog.get_logger(__name__)

# Files that are still being written; a finished one was renamed and never changes again.
UNFINISHED = (".partial", ".part", ".tmp")


class Workspace:
    """The directory of one epoch of one job."""

    def __init__(self, settings: Settings, job_id: UUID, epoch: int) -> None:
        self.job_directory = settings.work_dir.absolute() / str(job_id)
        self.epoch = epoch
        self.directory = self.job_directory / str(epoch)
        self.checkpoint = self.directory / "checkpoint"
        self.output = self.directory / "output"
        # An earlier checkpoint on its way here: it counts once it is whole.
        self.arriving = self.directory / "arriving"

    def create(self) -> None:
        """Make it, empty. An epoch is claimed once, so nothing of it can be there unless a database was restored."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)

    def earlier_checkpoint(self) -> tuple[int, Path] | None:
        """The newest checkpoint that an earlier epoch left on this machine, with its epoch."""
        for epoch in sorted(self._earlier_epochs(), reverse=True):
            directory = self.job_directory / str(epoch) / "checkpoint"
            if directory.is_dir() and any(finished_files(directory)):
                return epoch, directory
        return None

    def remove_output(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)

    def remove_job(self) -> None:
        """All epochs: the job has ended."""
        shutil.rmtree(self.job_directory, ignore_errors=True)

    def _earlier_epochs(self) -> Iterator[int]:
        for directory in self.job_directory.iterdir():
            if directory.name.isdecimal() and int(directory.name) < self.epoch:
                yield int(directory.name)


def finished_files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink() and not path.name.endswith(UNFINISHED):
            yield path


def link_files(source: Path, target: Path) -> None:
    """Give `target` the finished files of `source` without copying, where the file system allows it.

    The source may still be written to by an engine that nobody has stopped yet: what is renamed there is another file,
    and what vanishes meanwhile is left out. The engine checks every hash before it trusts a file.
    """
    for path in finished_files(source):
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(path, link)
            except FileNotFoundError:
                raise
            except OSError:
                # Another file system, or one without links.
                shutil.copyfile(path, link)
        except FileNotFoundError:
            continue


def remove_ended_jobs(database: Database, settings: Settings) -> list[UUID]:
    """Delete the directories of jobs that have ended. What may be retried, or is unknown here, stays for a while."""
    removed = []
    for directory in _job_directories(settings.work_dir):
        job_id = UUID(directory.name)
        try:
            old = time.time() - directory.stat().st_mtime > settings.orphan_seconds
        except FileNotFoundError:
            # Another worker of this machine was quicker.
            continue
        with database.transaction() as session:
            try:
                job = jobs.get(session, None, job_id)
            except NotFound:
                # Perhaps another deployment's, in the same directory.
                ended = old
            else:
                may_resume = job.state is JobState.FAILED and job.error is not None and job.error.retryable
                ended = job.state.terminal and (old or not may_resume)
        if ended:
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(job_id)
    if removed:
        log.info("work_directories_removed", jobs=[str(job_id) for job_id in removed])
    return removed


def _job_directories(work_dir: Path) -> Iterator[Path]:
    if not work_dir.is_dir():
        return
    for directory in sorted(work_dir.iterdir()):
        try:
            UUID(directory.name)
        except ValueError:
            continue
        if directory.is_dir():
            yield directory
