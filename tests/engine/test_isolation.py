"""Each in a process of its own: what is given up cannot be had back."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SITE_PACKAGES = Path(pytest.__file__).parents[1]
SOURCES = [str(ROOT / name) for name in ("services", "workers")]
# An interpreter that an unprivileged user may run; the one that runs the tests may lie in root's home.
SYSTEM_PYTHON = Path("/usr/bin/python3.11")

SCRIPT = """
import json, os, socket, sys
from pathlib import Path
from paredown.engine import isolation
{before}
try:
    applied = isolation.apply(required={required}, readable=[Path(p) for p in {readable}], writable=[Path({writable})])
except Exception as error:
    print(json.dumps({{"code": error.code, "detail": error.detail}}))
    sys.exit()
seen = {{"uid": os.geteuid(), "environment": sorted(os.environ), "group": os.getpgrp() == os.getpid()}}
seen["status"] = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"):
    try:
        socket.socket(getattr(socket, family)).close()
        seen[family] = "opened"
    except OSError as error:
        seen[family] = error.strerror
socket.socketpair()
(Path({writable}) / "written").write_text("yes")
print(json.dumps({{"applied": applied.model_dump(), "seen": seen}}))
"""


def isolated(
    tmp_path: Path,
    *,
    python: str = sys.executable,
    required: bool = True,
    before: str = "",
    readable: tuple[Path, ...] = (),
    writable: Path | None = None,
    environment: dict[str, str] | None = None,
    wrapper: tuple[str, ...] = (),
) -> dict[str, Any]:
    script = SCRIPT.format(
        before=before,
        required=required,
        readable=[str(path) for path in readable],
        writable=repr(str(writable or tmp_path)),
    )
    finished = subprocess.run(
        [*wrapper, python, "-c", script],
        env={"PYTHONPATH": os.pathsep.join([*SOURCES, str(SITE_PACKAGES)]), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        cwd="/",
    )
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


@contextmanager
def open_directory() -> Iterator[Path]:
    """pytest's own directories are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="isolation is known for Linux only")
root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEM_PYTHON.exists(), reason="needs root, and a Python outside of root's home"
)


@linux_only
def test_the_network_is_gone_and_privileges_with_it(tmp_path: Path) -> None:
    answer = isolated(tmp_path)

    applied, seen = answer["applied"], answer["seen"]
    assert applied["no_network"]
    assert applied["no_new_privileges"]
    assert applied["process_group"]
    assert seen["AF_INET"] == seen["AF_INET6"] == seen["AF_NETLINK"] == "Permission denied"
    assert seen["AF_UNIX"] == "opened"
    assert seen["status"]["NoNewPrivs"] == "1"
    assert int(seen["status"]["CapEff"], 16) == int(seen["status"]["CapPrm"], 16) == 0
    assert seen["group"]


@linux_only
def test_the_environment_is_emptied_and_what_was_in_it_is_noted(tmp_path: Path) -> None:
    clean = isolated(tmp_path, environment={"MIMALLOC_PURGE_DELAY": "10"})
    assert clean["applied"]["empty_environment"], "the allocator's settings are no secret"

    answer = isolated(tmp_path, environment={"AWS_SECRET_ACCESS_KEY": "secret", "PARE_SECRET": "secret"})
    assert not answer["applied"]["empty_environment"]
    assert "started with 2 foreign environment variables, which were removed" in answer["applied"]["notes"]
    assert not {"AWS_SECRET_ACCESS_KEY", "PARE_SECRET"} & set(answer["seen"]["environment"])


@linux_only
def test_where_the_network_cannot_be_cut_a_required_isolation_fails(tmp_path: Path) -> None:
    answer = isolated(tmp_path, before="isolation.network_is_cut = lambda: False")
    assert answer["code"] == "isolation_unavailable"
    assert "best_effort" in answer["detail"]

    assert not isolated(tmp_path, before="isolation.network_is_cut = lambda: False", required=False)["applied"][
        "no_network"
    ]


@linux_only
def test_a_container_without_namespaces_holds_by_the_filter_alone(tmp_path: Path) -> None:
    answer = isolated(tmp_path, before="isolation._CLONE_NEWNET = 1")

    assert answer["applied"]["no_network"]
    assert "no network namespace: Invalid argument" in answer["applied"]["notes"]
    assert answer["seen"]["AF_INET"] == answer["seen"]["AF_INET6"] == "Permission denied"


@linux_only
def test_a_machine_without_a_filter_holds_by_the_namespace_alone(tmp_path: Path) -> None:
    answer = isolated(tmp_path, before="isolation.platform.machine = lambda: 'vax'")

    assert answer["applied"]["no_network"]
    assert "no socket filter is known for vax" in answer["applied"]["notes"]
    assert answer["seen"]["AF_INET"] == "opened"


@linux_only
@root_only
def test_root_becomes_nobody_and_keeps_what_it_must_write() -> None:
    with open_directory() as open_to_all:
        work = open_to_all / "work"
        work.mkdir()
        (work / "earlier").write_text("from another epoch")

        answer = isolated(open_to_all, python=str(SYSTEM_PYTHON), writable=work)

        assert answer["applied"]["non_root"], answer["applied"]["notes"]
        assert answer["seen"]["uid"] == 65534
        assert (work / "written").read_text() == "yes"
        assert (work / "earlier").stat().st_uid == 65534


@linux_only
@root_only
def test_root_stays_where_nobody_could_not_read_the_model(tmp_path: Path) -> None:
    with open_directory() as open_to_all:
        secret = open_to_all / "weights"
        secret.write_text("x")
        secret.chmod(0o600)

        answer = isolated(open_to_all, python=str(SYSTEM_PYTHON), readable=(secret,), writable=open_to_all / "work")

        assert not answer["applied"]["non_root"]
        assert f"stays root: an unprivileged user cannot read {secret}" in answer["applied"]["notes"]
        assert answer["applied"]["no_network"]


@linux_only
@root_only
def test_an_unprivileged_worker_cuts_the_network_too() -> None:
    with open_directory() as open_to_all:
        work = open_to_all / "work"
        work.mkdir()
        os.chown(work, 65534, 65534)
        unprivileged = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

        answer = isolated(open_to_all, python=str(SYSTEM_PYTHON), writable=work, wrapper=unprivileged)

        assert answer["applied"]["no_network"]
        assert answer["applied"]["non_root"]
        assert answer["seen"]["AF_INET"] == "Permission denied"
