"""The embedded stack: production's processes on one machine, on loopback addresses, without root or Docker.

    PostgreSQL, Redis → migrations and key → API, dispatcher, worker, web front end

`up` starts what is not running and waits until each part is ready; `down` stops exactly what `up` started. What runs
stands in PARE_HOME/stack.json with process ids and start times, so that neither a crash nor a reboot makes `down` end
a stranger's process. PostgreSQL and Redis are known by their own directories.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ValidationError

from paredown.client.client import PareClient
from paredown.client.credentials import Credentials
from paredown.client.errors import CommandFailed
from paredown.client.recipe_files import explain
from paredown.contracts.access import Scope
from paredown.core import access, migrate, storage
from paredown.core.db import Database
from paredown.core.errors import PareError, Unauthenticated
from paredown.core.settings import Settings
from paredown.local import postgres, processes, redis
from paredown.local.home import Home, write_private
from paredown.local.parts import PORTS, Part, parts_of, service_environment, settings_for
from paredown.local.postgres import HOST, Server, ServerNotStarted
from paredown.local.processes import Running

Say = Callable[[str], None]

READY_SECONDS = 120.0
KEY_NAME = "pare up"
# The dispatcher first, so that a draining worker gets no more hints; then whoever needs the servers.
STOP_ORDER = ("web", "dispatcher", "worker", "api")


class StackFile(BaseModel):
    """What `up` started, and the ports to take again."""

    parts: dict[str, Running] = {}
    ports: dict[str, int] = {}


@dataclass(frozen=True)
class Addresses:
    """Where people find the stack."""

    home: Path
    api: str
    web: str

    def as_text(self) -> str:
        return f"Web   {self.web}\nAPI   {self.api}\nDocs  {self.api}/docs\nHome  {self.home}\n"

    def as_json(self) -> dict[str, object]:
        return {"web": self.web, "api": self.api, "docs": f"{self.api}/docs", "home": str(self.home)}


@dataclass(frozen=True)
class Status:
    """Which parts live, by process id."""

    parts: dict[str, int | None]
    addresses: Addresses | None

    @property
    def healthy(self) -> bool:
        return all(pid is not None for pid in self.parts.values())

    def as_text(self) -> str:
        rows = "".join(f"{name:<11}{f'process {pid}' if pid else 'stopped'}\n" for name, pid in self.parts.items())
        return rows + (self.addresses.as_text() if self.addresses and self.healthy else "")

    def as_json(self) -> dict[str, object]:
        return {
            "healthy": self.healthy,
            "parts": {name: {"running": pid is not None, "pid": pid} for name, pid in self.parts.items()},
            "addresses": self.addresses.as_json() if self.addresses else None,
        }


class Stack:
    """One PARE_HOME and what runs for it."""

    def __init__(self, home: Home) -> None:
        self.home = home

    @classmethod
    def open(cls) -> "Stack":
        return cls(Home.open())

    def up(self, say: Say) -> Addresses:
        """Start what is not running. Raises CommandFailed with a sentence and the end of the log."""
        with self.home.locked():
            file = self._read()
            database = self._serve("postgres", "PostgreSQL", postgres, file, say)
            broker = self._serve("redis", "Redis", redis, file, say)
            ports = {name: self._port(name, file) for name in PORTS}
            settings = _checked_settings(self.home, database, broker, ports["api"])
            self._prepare(settings, ports["api"])
            environment = service_environment(self.home, settings, ports["api"])
            started = []
            for part in parts_of(ports):
                before = file.parts.get(part.name)
                configuration = part.configuration(environment)
                if before and before.alive and before.configuration == configuration:
                    continue
                if before and before.alive:
                    say(f"The {part.title} runs with other settings; stopping it …")
                    processes.stop(before, part.stop_seconds)
                say(f"Starting the {part.title} …")
                log = self.home.log_of(part.name)
                offset = log.stat().st_size if log.exists() else 0
                pid = processes.start(part.command, environment, log, self.home.path)
                running = processes.note(pid, ports.get(part.name), configuration)
                file.parts[part.name] = running
                # At once: whatever happens next, `down` knows of it.
                self._write(file)
                started.append((part, running, log, offset))
            for part, running, log, offset in started:
                ready = partial(part.is_ready, running, log, offset)
                processes.await_ready(part.title, running, ready, log, READY_SECONDS)
            return self._addresses(ports)

    def down(self, say: Say) -> list[str]:
        """Stop what runs; the names of what was stopped. The data stays."""
        with self.home.locked():
            file = self._read()
            patience = {part.name: part.stop_seconds for part in parts_of(dict.fromkeys(PORTS, 0))}
            stopped = []
            for name in STOP_ORDER:
                running = file.parts.pop(name, None)
                if running and running.alive:
                    say(f"Stopping the {name} …" if name != "worker" else "Stopping the worker at its next block …")
                    if processes.stop(running, patience[name]):
                        say(f"The {name} did not stop in time and was killed; its job resumes at its last block.")
                    stopped.append(name)
                self._write(file)
            for name, server in (("redis", redis), ("postgres", postgres)):
                data_dir = self.home.path / name
                if server.running(data_dir):
                    say(f"Stopping {name} …")
                    try:
                        server.stop(data_dir)
                    except ServerNotStarted as error:
                        raise CommandFailed(str(error), code="stack_part_failed") from error
                    stopped.append(name)
            return stopped

    def status(self) -> Status:
        file = self._read()
        pids: dict[str, int | None] = {}
        for name, server in (("postgres", postgres), ("redis", redis)):
            found = server.running(self.home.path / name)
            pids[name] = found.pid if found else None
        for part in parts_of(dict.fromkeys(PORTS, 0)):
            running = file.parts.get(part.name)
            pids[part.name] = running.pid if running and running.alive else None
        known = {name: file.parts[name].port or 0 for name in PORTS if name in file.parts}
        return Status(pids, self._addresses(known) if len(known) == len(PORTS) else None)

    def client(self) -> PareClient:
        """With the key that `up` made."""
        credentials = self.home.credentials()
        assert credentials is not None, "up writes the credentials"
        return PareClient(credentials.api_url, credentials.api_key)

    def _serve(self, name: str, title: str, module: ModuleType, file: StackFile, say: Say) -> Server:
        """A server that knows itself by its directory: the one that runs, else a new one at its last port."""
        running: Server | None = module.running(self.home.path / name)
        if running:
            return running
        say(f"Starting {title} …")
        try:
            server: Server = module.start(self.home.path / name, processes.choose_port(file.ports.get(name, 0)))
        except ServerNotStarted as error:
            raise CommandFailed(f"{title} did not start: {error}", code="stack_part_failed") from error
        file.ports[name] = server.port
        self._write(file)
        return server

    def _port(self, name: str, file: StackFile) -> int:
        """The port of the part that lives, else the one it had, else its usual one, else any."""
        running = file.parts.get(name)
        if running and running.port and running.alive:
            return running.port
        port = processes.choose_port(file.ports.get(name, PORTS[name]))
        file.ports[name] = port
        return port

    def _prepare(self, settings: Settings, api_port: int) -> None:
        """What a new or older PARE_HOME lacks: tables, the store's directory, a key."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        database = Database(settings, pool_size=1)
        try:
            migrate.upgrade(settings)
            storage.open_store(settings).check()
            api_url = f"http://{HOST}:{api_port}"
            known = self.home.credentials()
            secret = known.api_key if known and _is_valid(known.api_key, database, settings) else None
            if known is None or secret is None or known.api_url != api_url:
                secret = secret or _new_key(database, settings)
                self.home.save_credentials(Credentials(api_url=api_url, api_key=secret))
        except PareError as error:
            raise CommandFailed(error.detail, code=error.code) from error
        finally:
            database.close()

    def _addresses(self, ports: dict[str, int]) -> Addresses:
        return Addresses(self.home.path, f"http://{HOST}:{ports['api']}", f"http://{HOST}:{ports['web']}")

    def _read(self) -> StackFile:
        try:
            return StackFile.model_validate_json(self.home.stack_file.read_bytes())
        except FileNotFoundError:
            return StackFile()
        except ValidationError as error:
            raise CommandFailed(
                f"{self.home.stack_file} is damaged, so what runs is not known; stop those processes, then remove it.",
                code="stack_file_damaged",
            ) from error

    def _write(self, file: StackFile) -> None:
        write_private(self.home.stack_file, file.model_dump_json(indent=2) + "\n")


def _checked_settings(home: Home, database: Server, broker: Server, api_port: int) -> Settings:
    try:
        return settings_for(home, database.url, broker.url, f"http://{HOST}:{api_port}")
    except ValidationError as error:
        mistakes = "; ".join(line.strip() for line in explain(error))
        raise CommandFailed(f"A PARE_* variable cannot be used: {mistakes}.", code="settings_invalid") from error


def _is_valid(secret: str, database: Database, settings: Settings) -> bool:
    try:
        with database.transaction() as session:
            access.authenticate(session, secret, settings)
    except Unauthenticated:
        return False
    return True


def _new_key(database: Database, settings: Settings) -> str:
    """The very first key, or another one when the file with the first was lost."""
    with database.transaction() as session:
        if first := access.bootstrap(session, settings):
            return first
        project = access.create_project(session, "default")
        return access.create_key(session, project, KEY_NAME, tuple(Scope), None, settings)[1]


__all__ = ["Addresses", "Part", "Stack", "Status"]
