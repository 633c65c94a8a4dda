"""Bring the database's tables to what this release needs, and tell whether they are.

The revisions lie in the top-level directory `migrations`; a wheel carries them as `paredown/migrations`.
"""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from paredown.core.errors import DatabaseUnavailable
from paredown.core.settings import Settings


def migrations_directory(module: Path = Path(__file__)) -> Path:
    """Where the revisions lie: in an installed wheel beside `core`, in a working tree at its top level."""
    package = module.resolve().parents[1]
    candidates = (package / "migrations", package.parents[1] / "migrations")
    return next(directory for directory in candidates if (directory / "env.py").is_file())


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Run the revisions up to this one. Two processes that call it together run one after the other."""
    _run(settings, lambda config: command.upgrade(config, revision))


def downgrade(settings: Settings, revision: str) -> None:
    """Undo the revisions after this one; `base` undoes all, and with them all data."""
    _run(settings, lambda config: command.downgrade(config, revision))


def head_revision() -> str:
    """The revision that this release needs."""
    head = _scripts().get_current_head()
    assert head is not None
    return head


def current_revision(session: Session) -> str | None:
    """The revision of the database; None before the first migration."""
    return MigrationContext.configure(session.connection()).get_current_revision()


def is_migrated(session: Session) -> bool:
    """Whether this release can serve. A revision that it does not know is a later one, made to run beside it."""
    current = current_revision(session)
    known = {script.revision for script in _scripts().walk_revisions()}
    return current is not None and (current == head_revision() or current not in known)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _run(settings: Settings, action: Callable[[Config], None]) -> None:
    engine = create_engine(settings.database_url, poolclass=NullPool)
    config = _config()
    config.attributes["engine"] = engine
    try:
        action(config)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) is None:
            raise DatabaseUnavailable("The database cannot be reached; check PARE_DATABASE_URL.") from error
        raise
    finally:
        engine.dispose()
