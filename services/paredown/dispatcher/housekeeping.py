"""What grows unless somebody tidies: months of events, used keys, files that no row speaks of.

Every step may be run by several dispatchers at once, broken off anywhere, and run again.
"""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby

import structlog
from sqlalchemy import delete, func
from sqlalchemy.exc import OperationalError

from paredown.core import catalogue
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable, PareError
from paredown.core.partitions import maintain_partitions
from paredown.core.settings import Settings
from paredown.core.storage import ObjectStore, StoredObject
from paredown.core.tables import IdempotencyRow

log = structlog.get_logger(__name__)

IDEMPOTENCY_HOURS = 24

# How many parts of a key make up one owner's place: artifacts/JOB/EPOCH, checkpoints/JOB, datasets/ID, calibrations/ID.
_PLACES = {"artifacts": 3, "checkpoints": 2, "datasets": 2, "calibrations": 2}


def keep_house(database: Database, store: ObjectStore, settings: Settings, stop: threading.Event) -> None:
    """Every chore once. One that fails is logged, and has its next turn with the others."""
    chores: list[Callable[[], object]] = [
        lambda: _partitions(database, settings),
        lambda: forget_keys(database),
        lambda: remove_deleted_artifacts(database, store),
        lambda: remove_orphans(database, store, settings, stop),
        lambda: store.remove_unfinished(_orphaned_before(settings)),
    ]
    for chore in chores:
        if stop.is_set():
            return
        try:
            chore()
        except DatabaseUnavailable as error:
            log.warning("housekeeping_put_off", reason=error.detail)
            return
        except PareError as error:
            log.warning("housekeeping_failed", code=error.code, detail=error.detail)
        except Exception:
            log.exception("housekeeping_failed")


def _partitions(database: Database, settings: Settings) -> None:
    try:
        with database.transaction() as session:
            maintain_partitions(session, settings.event_retention_days)
    except OperationalError as error:
        # Writers had the table; months are made far ahead, so the next turn will do.
        log.info("partitions_put_off", reason=str(error.orig))


def forget_keys(database: Database) -> int:
    """Idempotency keys are for repeats of one request, not for ever."""
    old = IdempotencyRow.created_at < func.now() - timedelta(hours=IDEMPOTENCY_HOURS)
    with database.transaction() as session:
        forgotten = session.scalars(delete(IdempotencyRow).where(old).returning(IdempotencyRow.key)).all()
    if forgotten:
        log.info("idempotency_keys_forgotten", number=len(forgotten))
    return len(forgotten)


def remove_deleted_artifacts(database: Database, store: ObjectStore) -> int:
    """Files first, then the mark: broken off between the two, the files are removed once more."""
    with database.transaction() as session:
        deleted = catalogue.deleted_artifacts(session)
    for artifact_id, prefix in deleted:
        store.delete_prefix(f"{prefix.rstrip('/')}/")
        with database.transaction() as session:
            catalogue.mark_swept(session, artifact_id)
        log.info("artifact_files_removed", artifact_id=str(artifact_id))
    return len(deleted)


def remove_orphans(database: Database, store: ObjectStore, settings: Settings, stop: threading.Event) -> int:
    """Files of lost epochs, and checkpoints of ended jobs, once nothing was added to them for `orphan_seconds`."""
    before = _orphaned_before(settings)
    removed = 0
    for place, newest in _places(store):
        if stop.is_set():
            break
        if newest >= before:
            continue
        with database.transaction() as session:
            known = catalogue.known_prefix(session, place)
        if not known:
            store.delete_prefix(f"{place}/")
            removed += 1
            log.info("orphan_removed", prefix=place)
    return removed


def _orphaned_before(settings: Settings) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=settings.orphan_seconds)


def _places(store: ObjectStore) -> Iterator[tuple[str, datetime]]:
    """Each owner's place, with the time of its newest file."""
    for root, parts in _PLACES.items():

        def place_of(item: StoredObject, parts: int = parts) -> str:
            return "/".join(item.key.split("/")[:parts])

        # Objects come in order of their keys, so those of one place come together.
        for place, items in groupby(store.list(f"{root}/"), key=place_of):
            yield place, max(item.modified_at for item in items)
