"""What the engine takes from itself before it reads a model: network, privileges, environment.

Applied first thing in the process, before torch is imported: a user namespace can only be entered while there is one
thread. Linux only; elsewhere nothing is applied and the record says so. What the record claims was tried, not assumed.

Network: a new network namespace with nothing in it, and a seccomp filter that answers `socket` with EACCES for all but
AF_UNIX. Either is enough; inside containers that forbid namespaces the filter alone holds.
"""

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from paredown.contracts.artifact import Isolation
from paredown.engine.errors import IsolationUnavailable

# Variables that carry no secret and that Python, CUDA or the spawner may need.
HARMLESS_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "GLIBC_TUNABLES",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PATH",
        "PWD",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "TMPDIR",
        "TZ",
    }
)
# The user that owns nothing.
NOBODY = 65534

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_SECCOMP_MODE_FILTER = 2


def apply(*, required: bool, readable: Iterable[Path], writable: Iterable[Path]) -> Isolation:
    """Isolate this process; the record says what holds.

    `readable` files and `writable` directories must stay so for the unprivileged user, else root is kept, without its
    capabilities, and a note says why. Writable directories are made, and handed to that user. Raises
    IsolationUnavailable where `required` and the network cannot be cut.
    """
    notes: list[str] = []
    process_group = _own_process_group()
    empty_environment = _clean_environment(notes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for directory in writable:
        directory.mkdir(parents=True, exist_ok=True)

    if sys.platform != "linux":
        no_network = no_new_privileges = non_root = False
        notes.append(f"no isolation is known for {sys.platform}")
    else:
        cut = _libc().unshare(_CLONE_NEWNET) == 0
        non_root = _drop_root(readable, writable, notes)
        if not cut:
            _enter_user_namespace(notes)
        _drop_capabilities(notes)
        no_new_privileges = _no_new_privileges()
        _filter_sockets(notes)
        no_network = network_is_cut()
    if required and not no_network:
        raise IsolationUnavailable(
            "The network cannot be cut off from the engine here, and ENGINE_ISOLATION is `required`: "
            + ("; ".join(notes) or "an internet socket could still be opened")
            + ". Allow user namespaces or seccomp, or set it to `best_effort`."
        )
    return Isolation(
        process_group=process_group,
        empty_environment=empty_environment,
        no_network=no_network,
        non_root=non_root,
        no_new_privileges=no_new_privileges,
        notes=tuple(notes),
    )


def network_is_cut() -> bool:
    """Whether even this machine's own loopback cannot be reached; where it cannot, nothing farther can."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", 9))
    except OSError:
        return True
    return False


def _own_process_group() -> bool:
    """Lead a process group: whoever kills it reaches every child, and nobody else's processes."""
    if os.getpgrp() != os.getpid():
        try:
            os.setpgid(0, 0)
        except OSError:
            return False
    return os.getpgrp() == os.getpid()


def is_harmless(name: str) -> bool:
    """Whether a variable carries no secret. The allocator's, by which an operator sets it, are of any name."""
    return name in HARMLESS_VARIABLES or name.startswith("MIMALLOC_")


def _clean_environment(notes: list[str]) -> bool:
    """Forget every variable that is not known to be harmless; True where there was none to forget."""
    foreign = sorted(name for name in os.environ if not is_harmless(name))
    for name in foreign:
        del os.environ[name]
    if foreign:
        notes.append(f"started with {len(foreign)} foreign environment variables, which were removed")
    return not foreign


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _enter_user_namespace(notes: list[str]) -> None:
    """A network namespace for one who is not root: inside a user namespace that maps only this user."""
    libc = _libc()
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        notes.append(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        return
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        # Without a map the files stay this user's all the same; only their names look foreign from inside.
        notes.append(f"user namespace without a map: {error.strerror}")


def _drop_root(readable: Iterable[Path], writable: Iterable[Path], notes: list[str]) -> bool:
    """Become an unprivileged user where this one is root and all that is needed stays within reach."""
    if os.geteuid() != 0:
        return True
    directories = list(writable)
    needed = [Path(entry) for entry in (sys.executable, sys.prefix, sys.base_prefix, *sys.path) if entry]
    unreachable = _unreachable([*needed, *readable], directories)
    if unreachable:
        notes.append(f"stays root: an unprivileged user cannot read {unreachable}")
        return False
    try:
        for directory in directories:
            for path in (directory, *directory.rglob("*")):
                # Another run that shares the directory may have renamed its file meanwhile.
                with suppress(FileNotFoundError):
                    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        notes.append(f"stays root: {error.strerror}")
        return os.geteuid() != 0
    return os.geteuid() != 0


def _unreachable(readable: Iterable[Path], directories: Iterable[Path]) -> str | None:
    """The first path that NOBODY could not use, tried in a child that became that user."""
    modes = [(path, os.R_OK | (os.X_OK if path.is_dir() else 0)) for path in readable if path.exists()]
    modes += [(directory.parent, os.X_OK) for directory in directories]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # A copy of the whole process: it must end here, whatever happens.
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            refused = next((str(path) for path, mode in modes if not os.access(path, mode)), "")
            os.write(writing, refused.encode())
        except OSError as error:
            os.write(writing, f"anything ({error.strerror})".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        found = answer.read().decode()
    os.waitpid(child, 0)
    return found or None


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _drop_capabilities(notes: list[str]) -> None:
    """Give up what root may beyond its own files, also root of a user namespace."""
    header = _CapabilityHeader(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _libc().capset(ctypes.byref(header), nothing) != 0:
        notes.append(f"capabilities are kept: {os.strerror(ctypes.get_errno())}")


def _no_new_privileges() -> bool:
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


# machine → (AUDIT_ARCH, number of `socket`). `io_uring_setup` is 425 on every machine.
_SYSCALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_IO_URING_SETUP = 425
# Numbers from here on are x86_64's second ABI, through which `socket` has another number.
_X32_BIT = 0x40000000


def _filter_sockets(notes: list[str]) -> None:
    """Deny sockets that are not AF_UNIX, and io_uring, which could open them unseen. Needs no_new_privs."""
    known = _SYSCALLS.get(platform.machine())
    if known is None:
        notes.append(f"no socket filter is known for {platform.machine()}")
        return
    architecture, socket_number = known
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, kill, deny = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
    # struct seccomp_data: number at 0, architecture at 4, first argument's low half at 16 (little-endian machines).
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 5, 0, _X32_BIT),
        (equal, 4, 0, _IO_URING_SETUP),
        (equal, 0, 2, socket_number),
        (load, 0, 0, 16),
        (equal, 0, 1, socket.AF_UNIX),
        (answer, 0, 0, allow),
        (answer, 0, 0, deny),
    ]
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    filter_program = _FilterProgram(len(program), instructions)
    libc = _libc()
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_program), 0, 0) != 0:
        notes.append(f"no socket filter: {os.strerror(ctypes.get_errno())}")
