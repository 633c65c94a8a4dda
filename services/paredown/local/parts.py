"""The services of the embedded stack: their commands, their settings, and how one knows that each serves."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from paredown.core.settings import Settings
from paredown.local import processes
from paredown.local.home import Home
from paredown.local.postgres import HOST
from paredown.local.processes import Running

# Where people look first; taken ones are replaced by any free port.
PORTS = {"api": 8760, "web": 8761}
STOP_SECONDS = 15.0
# A worker finishes the block at hand and saves its checkpoint.
DRAIN_SECONDS = 75.0
# Livelier than a cluster: one machine, a handful of jobs, and somebody who watches. PARE_* variables overrule these.
PACE: dict[str, Any] = {
    "lease_seconds": 20.0,
    "heartbeat_seconds": 2.0,
    "tick_timeout_seconds": 15.0,
    "dispatch_seconds": 0.5,
    "event_poll_seconds": 0.3,
    "retry_delay_seconds": 2.0,
}
# Variables of the command line that are no business of the services.
_CLIENT_ONLY = frozenset({"PARE_API_KEY", "PARE_DEBUG"})

IsReady = Callable[[Running, Path, int], bool]


@dataclass(frozen=True)
class Part:
    """A service of ours. `is_ready` gets the process, its log and the log's length from before it started."""

    name: str
    title: str
    command: tuple[str, ...]
    is_ready: IsReady
    stop_seconds: float = STOP_SECONDS

    def configuration(self, environment: Mapping[str, str]) -> str:
        """Changes with whatever the part would do differently."""
        ours = {name: value for name, value in environment.items() if name.startswith("PARE_")}
        return hashlib.sha256(json.dumps([self.command, ours], sort_keys=True).encode()).hexdigest()


def parts_of(ports: Mapping[str, int]) -> tuple[Part, ...]:
    # -P keeps the working directory out of the module search path.
    python = (sys.executable, "-P", "-m")
    uvicorn = (*python, "uvicorn", "paredown.api.app:create_app", "--factory", "--no-access-log")
    return (
        Part(
            "api",
            "API",
            (*uvicorn, "--host", HOST, "--port", str(ports["api"]), "--timeout-graceful-shutdown", "5"),
            _answers("/readyz"),
        ),
        Part("dispatcher", "dispatcher", (*python, "paredown.dispatcher"), _said(b"started")),
        Part("worker", "worker", (*python, "paredown.worker", "--pool", "cpu"), _said(b"ready"), DRAIN_SECONDS),
        Part(
            "web",
            "web front end",
            (*python, "paredown.web", "--port", str(ports["web"]), "--address", HOST),
            _answers("/_stcore/health"),
        ),
    )


def _answers(path: str) -> IsReady:
    def is_ready(running: Running, _log: Path, _offset: int) -> bool:
        if not processes.listens(running):
            return False
        try:
            return httpx.get(f"http://{HOST}:{running.port}{path}", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    return is_ready


def _said(word: bytes) -> IsReady:
    """A part without a port says in its log that it works."""

    def is_ready(_running: Running, log: Path, offset: int) -> bool:
        with log.open("rb") as stream:
            stream.seek(offset if offset <= log.stat().st_size else 0)
            return word in stream.read()

    return is_ready


def settings_for(home: Home, database_url: str, redis_url: str, public_url: str) -> Settings:
    """What all parts share. PARE_* variables of the caller are taken over where the stack does not decide itself.

    Raises pydantic's ValidationError when one of those cannot be used.
    """
    pace = {name: value for name, value in PACE.items() if f"PARE_{name.upper()}" not in os.environ}
    return Settings(
        **pace,
        database_url=database_url,
        redis_url=redis_url,
        public_url=public_url,
        secret=SecretStr(home.secret()),
        store_url=home.store.as_uri(),
        cache_dir=home.cache,
        work_dir=home.work,
        file_roots=[home.models],
    )


def service_environment(home: Home, settings: Settings, api_port: int) -> dict[str, str]:
    """The caller's environment with every setting that differs from its default written out."""
    environment = {name: value for name, value in os.environ.items() if name not in _CLIENT_ONLY}
    for name in settings.model_fields_set:
        environment[f"PARE_{name.upper()}"] = _written(getattr(settings, name))
    return environment | {
        "PARE_HOME": str(home.path),
        "PARE_API_URL": f"http://{HOST}:{api_port}",
        # Whoever reaches a loopback address of this machine is its user: no key has to be typed into the page.
        "PARE_WEB_AUTOLOGIN": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _written(value: Any) -> str:
    """As pydantic-settings reads it back."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list | dict):
        return json.dumps(value, default=lambda item: item.model_dump() if hasattr(item, "model_dump") else str(item))
    return str(value)
