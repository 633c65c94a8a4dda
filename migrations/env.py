"""Alembic's environment. core/migrate.py runs it; it is not run by hand."""

from alembic import context
from sqlalchemy import Engine, text

# Any number; the same for every Pare, so that two that start together migrate one after the other.
MIGRATION_LOCK = 0x70617265

engine: Engine = context.config.attributes["engine"]

with engine.connect() as connection:
    # Waiting for another migration may take minutes; waiting for a table may not, because the requests behind wait too.
    connection.execute(text("SET lock_timeout = 0"))
    connection.execute(text("SET statement_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '15min'"))
    connection.commit()
    try:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
