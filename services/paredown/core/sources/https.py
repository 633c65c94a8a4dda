"""https://: one GGUF file, or a directory (its address ends with a slash) whose usual names are tried one by one."""

from collections.abc import Iterator
from functools import cached_property
from urllib.parse import unquote, urljoin, urlsplit

from paredown.core.errors import SourceError, SourceNotFound
from paredown.core.settings import Settings
from paredown.core.sources.base import INDEX_LIMIT_BYTES, SourceFile, read_range
from paredown.core.sources.http import HttpClient, http_file
from paredown.core.sources.selection import (
    CONFIG,
    INDEX,
    PICKLE_FILES,
    TOKENIZER_FILES,
    WEIGHTS,
    is_plain_name,
    parse_index,
)
from paredown.core.sources.text import bounded, column_of


class HttpsSource:
    revision: str | None = None

    def __init__(self, uri: str, settings: Settings) -> None:
        path = urlsplit(uri).path
        name = unquote(path.rpartition("/")[2])
        if name and (not name.endswith(".gguf") or not is_plain_name(name)):
            raise SourceError(f"{uri} names neither a .gguf file nor a directory; end a directory with a slash.")
        self.gguf_file = name or None
        self._uri = uri
        self._client = HttpClient(settings)

    def files(self) -> dict[str, SourceFile]:
        return self._files

    @cached_property
    def _files(self) -> dict[str, SourceFile]:
        found: dict[str, SourceFile] = {}
        if self.gguf_file is not None:
            file = http_file(self._client, self._uri, self.gguf_file)
            if file is None:
                raise SourceNotFound(f"{self._uri} does not exist.")
            return {self.gguf_file: file}
        self._find(found, CONFIG, WEIGHTS)
        if WEIGHTS not in found:
            self._find(found, INDEX)
            if INDEX in found:
                self._find(found, *self._shards(found[INDEX]))
            else:
                # Only to say what is there instead.
                self._find(found, *PICKLE_FILES)
                return found
        self._find(found, *TOKENIZER_FILES)
        return found

    def _find(self, found: dict[str, SourceFile], *names: str) -> None:
        for name in names:
            file = http_file(self._client, urljoin(self._uri, name), name)
            if file is not None:
                found[name] = file

    def _shards(self, index: SourceFile) -> list[str]:
        # select() will judge the size; this only avoids reading what it will refuse.
        if index.size_bytes > INDEX_LIMIT_BYTES:
            return []
        return sorted(set(parse_index(read_range(self, index, 0, index.size_bytes)).values()))

    def stream(self, file: SourceFile, start: int, length: int | None = None) -> Iterator[bytes]:
        url = self._uri if self.gguf_file is not None else urljoin(self._uri, file.path)
        return self._client.stream(url, start, length, file.identity)

    def close(self) -> None:
        self._client.close()


def check_https_text(uri: str, settings: Settings) -> None:
    """Whether the host may be reached, judged by its addresses; nothing is fetched."""
    HttpClient(settings).judge(uri)


def read_https_text(uri: str, settings: Settings) -> bytes:
    name, data = read_https(uri, settings)
    return column_of(data, name, "text")


def read_https(uri: str, settings: Settings) -> tuple[str, bytes]:
    """Name and bytes of what an address holds."""
    client = HttpClient(settings)
    try:
        return urlsplit(uri).path, bounded(client.stream(uri, 0, None, None), uri)
    finally:
        client.close()
