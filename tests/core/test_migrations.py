"""The database is built by the migrations; they agree with the tables that the code uses, and can be undone."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError
from tests.core.builders import claim_job, finish_job, submit_job

from paredown.core import access, jobs, migrate
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.partitions import maintain_partitions
from paredown.core.settings import Settings
from paredown.core.tables import Base


@pytest.fixture
def empty(empty_database_url: str) -> Settings:
    return Settings(database_url=empty_database_url)


def test_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    def ours(_: Any, name: str | None, kind: str, reflected: bool, __: Any) -> bool:
        # The partitions of job_events are made as months go by.
        return not (kind == "table" and reflected and name is not None and name.startswith("job_events_"))

    with database.engine.connect() as connection:
        options = {"include_object": ours, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_what_alembic_does_not_compare_is_the_same_too(settings: Settings, empty: Settings) -> None:
    """Checks, index expressions and conditions, deferrable keys, partitioning: as PostgreSQL writes them down."""

    def definitions(settings: Settings) -> set[tuple[str, str, str]]:
        database = Database(settings)
        query = """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
            UNION SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION SELECT partrelid::regclass::text, 'partition key', pg_get_partkeydef(partrelid)
            FROM pg_partitioned_table
        """
        with database.engine.connect() as connection:
            rows = {(row[0], row[1], row[2]) for row in connection.execute(text(query))}
        database.close()
        return {row for row in rows if row[0] != "alembic_version" and not row[0].startswith("job_events_")}

    from_tables = Database(empty)
    Base.metadata.create_all(from_tables.engine)
    from_tables.close()
    assert definitions(settings) == definitions(empty)


def test_upgrade_and_downgrade_with_data(database: Database, project: UUID, settings: Settings) -> None:
    with database.transaction() as session:
        maintain_partitions(session, 90)
        access.bootstrap(session, settings)
        assert migrate.is_migrated(session)
    finish_job(database, project, settings)
    submit_job(database, project)
    claim_job(database, settings)

    migrate.upgrade(settings)
    with database.transaction() as session:
        assert len(jobs.list_jobs(session, project, after=None, limit=10)[0]) == 2

    migrate.downgrade(settings, "base")
    assert set(inspect(database.engine).get_table_names()) == {"alembic_version"}
    with database.transaction() as session:
        assert migrate.current_revision(session) is None
        assert not migrate.is_migrated(session)
    migrate.upgrade(settings)
    with database.transaction() as session:
        assert migrate.current_revision(session) == migrate.head_revision()
        assert access.bootstrap(session, settings)


def test_whoever_could_do_all_before_may_override_verdicts_and_promote(
    database: Database, project: UUID, settings: Settings
) -> None:
    """A key gives no scope that it lacks: without this, nobody could ever be given the new ones."""
    new = (access.Scope.ARTIFACTS_OVERRIDE, access.Scope.ARTIFACTS_PROMOTE)
    earlier = [scope for scope in access.Scope if scope not in new]
    migrate.downgrade(settings, "0002")
    with database.transaction() as session:
        _, secret = access.create_key(session, project, "first", earlier, None, settings)
        _, lesser = access.create_key(session, project, "lesser", earlier[:-1], None, settings)
    for _ in range(2):
        migrate.upgrade(settings)
        with database.transaction() as session:
            assert access.authenticate(session, secret, settings).scopes == tuple(access.Scope)
            assert access.authenticate(session, lesser, settings).scopes == tuple(earlier[:-1])
        migrate.downgrade(settings, "0002")
    migrate.upgrade(settings)


def test_two_upgrades_at_once_follow_each_other(empty: Settings) -> None:
    program = "import sys; from paredown.core import migrate, settings; "
    program += "migrate.upgrade(settings.Settings(database_url=sys.argv[1]))"
    command = [sys.executable, "-c", program, empty.database_url]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [upgrade.communicate()[1] for upgrade in both] == ["", ""]
    assert [upgrade.returncode for upgrade in both] == [0, 0]
    database = Database(empty)
    with database.transaction() as session:
        assert migrate.is_migrated(session)
    database.close()


def test_release_serves_beside_a_later_one(database: Database) -> None:
    """Migrations come first, then the new code: the old one goes on answering."""
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        assert migrate.is_migrated(session)
    with database.transaction() as session:
        session.execute(text("DELETE FROM alembic_version"))
        assert not migrate.is_migrated(session)


def test_migration_gives_up_rather_than_block_a_table(database: Database, settings: Settings) -> None:
    with database.engine.connect() as reader:
        # A table that the newest migration changes: it is the first to be undone.
        reader.execute(text("SELECT * FROM idempotency_keys"))
        started = time.monotonic()
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.downgrade(settings, "base")
        assert time.monotonic() - started < 60
    # Each revision is a transaction of its own: later ones than that which gave up are undone.
    with database.transaction() as session:
        assert migrate.current_revision(session) not in (None, migrate.head_revision())
    migrate.upgrade(settings)
    with database.transaction() as session:
        assert migrate.is_migrated(session)


def test_database_out_of_reach_is_said_in_a_sentence() -> None:
    with pytest.raises(DatabaseUnavailable):
        migrate.upgrade(Settings(database_url="postgresql+psycopg://pare@127.0.0.1:1/pare"))


def test_revisions_are_found_in_a_wheel(tmp_path: Path) -> None:
    """pyproject puts them beside the packages; in a working tree they lie at its top."""
    top_level = migrate.migrations_directory()
    assert (top_level.parent / "pyproject.toml").is_file()
    installed = tmp_path / "site-packages" / "paredown"
    installed.mkdir(parents=True)
    (installed / "migrations").symlink_to(top_level)
    assert migrate.migrations_directory(installed / "core" / "migrate.py") == installed / "migrations"
