"""pkg:// and file://: models on this machine's own disk, below what an operator allows."""

import importlib.metadata
import importlib.util
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from paredown.core.errors import NotAModel, SourceError, SourceNotAllowed, SourceNotFound
from paredown.core.settings import Settings
from paredown.core.sources.base import CHUNK_BYTES, SourceFile
from paredown.core.sources.text import bounded, plain_text

_MAX_ENTRIES = 10_000


class LocalSource:
    """A directory or one GGUF file. Every file, links followed, must lie below one of `roots`."""

    def __init__(self, path: Path, roots: list[Path], revision: str | None, shown: str) -> None:
        self._roots = roots
        self._shown = shown
        self.revision = revision
        resolved = allowed_path(path, roots, shown)
        self._is_directory = resolved.is_dir()
        if not self._is_directory and resolved.suffix != ".gguf":
            raise NotAModel(f"{shown} is neither a directory nor a .gguf file.")
        # The name as written: a link's target may be called anything.
        self.gguf_file = None if self._is_directory else path.name
        self._directory = resolved if self._is_directory else path.parent

    def files(self) -> dict[str, SourceFile]:
        names = [self.gguf_file] if self.gguf_file is not None else self._names()
        found = {}
        for name in names:
            status = self._resolve(name).stat()
            if stat.S_ISREG(status.st_mode):
                identity = f"{status.st_mtime_ns}-{status.st_ctime_ns}"
                found[name] = SourceFile(path=name, size_bytes=status.st_size, identity=identity)
        return found

    def _names(self) -> list[str]:
        names = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.is_file():
                        names.append(entry.name)
                    if len(names) > _MAX_ENTRIES:
                        raise NotAModel(f"{self._shown} holds more than {_MAX_ENTRIES} files; a model has fewer.")
        except OSError as error:
            raise SourceNotFound(f"{self._shown} cannot be read: {error.strerror}.") from error
        return sorted(names)

    def _resolve(self, name: str) -> Path:
        return allowed_path(self._directory / name, self._roots, f"{self._shown}: {name}")

    def stream(self, file: SourceFile, start: int, length: int | None = None) -> Iterator[bytes]:
        try:
            # A file that became a link or a pipe since it was resolved is refused by these flags.
            descriptor = os.open(self._resolve(file.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as opened:
                opened.seek(start)
                left = file.size_bytes - start if length is None else length
                while left > 0 and (chunk := opened.read(min(left, CHUNK_BYTES))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise SourceNotFound(f"{self._shown}: {file.path} cannot be read: {error.strerror}.") from error

    def close(self) -> None:
        """Nothing is held open between reads."""


def allowed_path(path: Path, roots: list[Path], shown: str) -> Path:
    """The path with links followed, below a root. Raises SourceNotAllowed before it tells whether the file exists."""
    try:
        resolved = path.resolve()
        if not any(resolved.is_relative_to(root.resolve()) for root in roots):
            raise _not_allowed(shown, roots)
        if not resolved.exists():
            raise SourceNotFound(f"{shown} does not exist.")
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceNotFound(f"{shown} is not a usable path.") from error
    return resolved


def _not_allowed(shown: str, roots: list[Path]) -> SourceNotAllowed:
    if not roots:
        return SourceNotAllowed(f"{shown} is refused: this service reads no files of its machine (PARE_FILE_ROOTS).")
    return SourceNotAllowed(f"{shown} is not below a directory that the operator allows (PARE_FILE_ROOTS).")


def file_path(uri: str) -> Path:
    """The path of a file:// address. Raises SourceError."""
    rest = unquote(uri.removeprefix("file://"))
    path = Path(rest)
    if not rest.startswith("/") or "\0" in rest:
        raise SourceError(f"{uri} does not name an absolute path; write file:///directory/model.")
    if ".." in path.parts:
        raise SourceNotAllowed(f"{uri} has '..' in its path; write the path without it.")
    return path


def open_file(uri: str, settings: Settings) -> LocalSource:
    return LocalSource(file_path(uri), settings.file_roots, None, uri)


def open_package(uri: str, settings: Settings) -> LocalSource:
    """pkg://package/path inside an installed Python package, whose code is not run."""
    package, _, rest = unquote(uri.removeprefix("pkg://")).partition("/")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", package):
        raise SourceError(f"{uri} does not name a package; write pkg://package/file.gguf.")
    if package not in settings.allowed_packages:
        raise SourceNotAllowed(f"The package {package} is not among those an operator allows (PARE_ALLOWED_PACKAGES).")
    if ".." in Path(rest).parts or rest.startswith("/") or "\0" in rest:
        raise SourceNotAllowed(f"{uri} leaves its package.")
    root = package_directory(package)
    return LocalSource(root / rest, [root], _package_version(package), uri)


def package_directory(package: str) -> Path:
    # find_spec of a top-level name only looks for its files; the package itself is not imported.
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not locations:
        raise SourceNotFound(f"The package {package} is not installed; install it, such as `pip install {package}`.")
    return Path(locations[0])


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_file_text(uri: str, settings: Settings) -> None:
    """Whether file:// may read this text. The file itself is only looked for where its root is on this machine."""
    path = file_path(uri)
    if any(root.is_dir() and path.is_relative_to(root) for root in settings.file_roots):
        allowed_path(path, settings.file_roots, uri)
    elif not any(path.is_relative_to(root) for root in settings.file_roots):
        raise _not_allowed(uri, settings.file_roots)


def read_file_text(uri: str, settings: Settings) -> bytes:
    name, data = read_file(uri, settings)
    return plain_text(data, name)


def read_file(uri: str, settings: Settings) -> tuple[str, bytes]:
    """Name and bytes of a file."""
    path = allowed_path(file_path(uri), settings.file_roots, uri)
    if not path.is_file():
        raise SourceNotFound(f"{uri} is not a file.")
    return path.name, _read(uri, [path])


def read_rows(uri: str, settings: Settings) -> tuple[str, bytes]:
    """The same; of a directory, its JSON lines in the order of their names."""
    path = allowed_path(file_path(uri), settings.file_roots, uri)
    if not path.is_dir():
        return read_file(uri, settings)
    found = sorted(path.glob("*.jsonl"))[: _MAX_ENTRIES + 1]
    if not 0 < len(found) <= _MAX_ENTRIES:
        raise SourceNotFound(f"{uri} holds {len(found) or 'no'} files that end in .jsonl.")
    return f"{path.name}.jsonl", _read(uri, [allowed_path(file, settings.file_roots, uri) for file in found])


def _read(uri: str, paths: list[Path]) -> bytes:
    """The files one after the other, each from a line of its own."""

    def chunks() -> Iterator[bytes]:
        for number, path in enumerate(paths):
            if number:
                yield b"\n"
            with path.open("rb") as stream:
                yield from iter(lambda: stream.read(CHUNK_BYTES), b"")

    try:
        return bounded(chunks(), uri.rpartition("/")[2] or uri)
    except OSError as error:
        raise SourceNotFound(f"{uri} cannot be read: {error.strerror}.") from error
