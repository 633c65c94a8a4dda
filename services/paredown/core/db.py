"""The database: one engine for each process, explicit transactions, timeouts on every session."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from paredown.core.errors import DatabaseUnavailable
from paredown.core.settings import Settings

# PostgreSQL's code for a lock that was not had within the lock timeout.
LOCK_NOT_AVAILABLE = "55P03"


class Database:
    """A pool of connections. Sync everywhere; the API's event stream opens no session of its own."""

    def __init__(self, settings: Settings, *, pool_size: int = 5) -> None:
        options = (
            f"-c statement_timeout={int(settings.statement_timeout_seconds * 1000)} "
            f"-c lock_timeout={int(settings.lock_timeout_seconds * 1000)} "
            "-c idle_in_transaction_session_timeout=30000 -c timezone=UTC"
        )
        self.engine: Engine = create_engine(
            settings.database_url,
            pool_size=pool_size,
            max_overflow=10,
            pool_pre_ping=True,
            connect_args={
                "options": options,
                "connect_timeout": 5,
                "application_name": "pare",
                # A database that vanished without a word is noticed long before a lease ends.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 20_000,
            },
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any error. Raises DatabaseUnavailable."""
        try:
            with self._sessions.begin() as session:
                yield session
        except OperationalError as error:
            # Lock and statement timeouts are operational errors too; only a lost connection means "unavailable".
            if error.connection_invalidated or getattr(error.orig, "sqlstate", None) is None:
                raise DatabaseUnavailable("The database cannot be reached; try again in a moment.") from error
            raise

    def ping(self) -> None:
        """Raises DatabaseUnavailable when no query can be answered."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except DBAPIError as error:
            raise DatabaseUnavailable("The database cannot be reached; try again in a moment.") from error

    def close(self) -> None:
        self.engine.dispose()


def database_now(session: Session) -> datetime:
    """The database's clock at the begin of this transaction: the only clock that decides anything."""
    now: datetime = session.execute(select(func.now())).scalar_one()
    return now
