"""The database is built by the migrations, and they agree with the tables that the code uses."""

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from paredown.core.db import Database
from paredown.core.tables import Base


def test_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    def ours(_: Any, name: str | None, kind: str, reflected: bool, __: Any) -> bool:
        # The partitions of job_events are made as months go by.
        return not (kind == "table" and reflected and name is not None and name.startswith("job_events_"))

    with database.engine.connect() as connection:
        options = {"include_object": ours, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
