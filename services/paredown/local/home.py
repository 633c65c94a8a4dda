"""PARE_HOME: where the embedded stack keeps everything, and who may read it.

credentials.json   the key that the command line uses        0600
secret             signs keys and addresses                  0600
stack.json         what runs: process ids, start times, ports
stack.lock         held by `pare up` and `pare down`
logs/ postgres/ redis/ store/ cache/ work/ models/
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paredown.client.credentials import CREDENTIALS_NAME, Credentials, pare_home
from paredown.client.errors import CommandFailed


@dataclass(frozen=True)
class Home:
    """The directory and the paths in it."""

    path: Path

    @classmethod
    def open(cls) -> "Home":
        """PARE_HOME, made on first use. Raises CommandFailed."""
        home = cls(pare_home())
        as_root = os.geteuid() == 0
        # Root's stack runs PostgreSQL and the engine as users who own nothing: they may pass through, not list.
        passable = 0o711 if as_root else 0o700
        try:
            home.path.mkdir(mode=passable, parents=True, exist_ok=True)
            for directory in (home.cache, home.work):
                directory.mkdir(mode=passable, exist_ok=True)
            for directory in (home.logs, home.store, home.models):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CommandFailed(
                f"{home.path} cannot be used ({error.strerror}); set PARE_HOME to a directory of yours.",
                code="home_unusable",
            ) from error
        return home

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def stack_file(self) -> Path:
        return self.path / "stack.json"

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def secret(self) -> str:
        """Made once: with another secret every key and signed address would be void."""
        path = self.path / "secret"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(48))
        return path.read_text(encoding="ascii").strip()

    def credentials(self) -> Credentials | None:
        try:
            return Credentials.model_validate_json((self.path / CREDENTIALS_NAME).read_bytes())
        except (OSError, ValueError):
            return None

    def save_credentials(self, credentials: Credentials) -> None:
        write_private(self.path / CREDENTIALS_NAME, credentials.model_dump_json(indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One `pare up` or `pare down` at a time."""
        with (self.path / "stack.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CommandFailed(
                    "Another `pare up` or `pare down` is at work on this stack; wait for it.", code="stack_busy"
                ) from error
            yield


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, and readable by its owner only from the first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
