"""hf://org/name@revision: models and data sets of a Hugging Face hub.

What lies there is asked through huggingface_hub and pinned to a commit; the bytes come through our own client, which
resumes and stops when told. The token goes to the hub alone, never along a redirect to its file servers.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from paredown.core.errors import SourceError, SourceNotAllowed, SourceNotFound, SourceUnreachable
from paredown.core.settings import Settings
from paredown.core.sources.base import SourceFile
from paredown.core.sources.http import HttpClient
from paredown.core.sources.selection import is_plain_name
from paredown.core.sources.text import bounded, column_of

# A revision with a slash, such as refs/pr/1, is written refs%2Fpr%2F1.
_MODEL = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/?#\s]+))?(?:/([^?#\s]+\.gguf))?/?")
_DATASET = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/?#\s]+))?/([^?#\s]+)")


class Repository:
    """One revision of a model or a data set, pinned to its commit when first asked."""

    def __init__(self, uri: str, settings: Settings, kind: str, repo: str, revision: str | None) -> None:
        self._uri, self._settings = uri, settings
        self._kind, self._repo, self._asked = kind, repo, unquote(revision) if revision else None
        # False, so that a token in the home directory of this service is never used by mistake.
        self._token = settings.hf_token.get_secret_value() if settings.hf_token else False
        self._endpoint = settings.hf_endpoint.rstrip("/")
        host = urlsplit(self._endpoint).hostname or ""
        # The operator chose the hub, so it may be at a private address.
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._client = HttpClient(settings, frozenset({host}), headers, host)

    @cached_property
    def info(self) -> Any:
        api = HfApi(endpoint=self._endpoint, token=self._token)
        ask = api.model_info if self._kind == "model" else api.dataset_info
        where = f"{self._repo}{f'@{self._asked}' if self._asked else ''}"
        try:
            found = ask(
                self._repo,
                revision=self._asked,
                files_metadata=True,
                timeout=self._settings.connect_timeout_seconds + self._settings.read_timeout_seconds,
            )
        except GatedRepoError as error:
            raise SourceNotAllowed(
                f"{where} is gated: accept its terms on the hub, and let an operator set PARE_HF_TOKEN."
            ) from error
        except RevisionNotFoundError as error:
            raise SourceNotFound(f"{self._repo} has no revision {self._asked!r} on the hub.") from error
        except RepositoryNotFoundError as error:
            raise SourceNotFound(
                f"There is no {where} on the hub, or it is private and PARE_HF_TOKEN does not reach it."
            ) from error
        except (HTTPError, OfflineModeIsEnabled) as error:
            raise SourceUnreachable(
                f"The hub {self._endpoint} cannot be asked for {where}: {_reason(error)}."
            ) from error
        except (HFValidationError, KeyError, TypeError, ValueError) as error:
            raise SourceNotFound(f"{self._uri} is not a repository of the hub: {_reason(error)}.") from error
        if not isinstance(found.sha, str) or found.siblings is None:
            raise SourceUnreachable(f"The hub {self._endpoint} did not say which commit {where} is.")
        return found

    @property
    def commit(self) -> str:
        return str(self.info.sha)

    def every_file(self) -> dict[str, SourceFile]:
        """All files of the commit by their path in the repository."""
        return {
            sibling.rfilename: SourceFile(
                path=sibling.rfilename.rpartition("/")[2],
                size_bytes=sibling.size,
                identity=f"{self.commit}/{sibling.rfilename}",
                sha256=sibling.lfs.sha256 if sibling.lfs else None,
            )
            for sibling in self.info.siblings
            if isinstance(sibling.size, int)
        }

    def stream(self, path: str, start: int, length: int | None) -> Iterator[bytes]:
        url = hf_hub_url(self._repo, path, repo_type=self._kind, revision=self.commit, endpoint=self._endpoint)
        # The commit pins the bytes, so no ETag is needed to know them again.
        return self._client.stream(url, start, length, None)

    def close(self) -> None:
        self._client.close()


class HubSource:
    def __init__(self, uri: str, settings: Settings) -> None:
        match = _MODEL.fullmatch(uri)
        if match is None or uri.startswith("hf://datasets/"):
            raise SourceError(f"{uri} is not an address of a model; write hf://org/name or hf://org/name@revision.")
        repo, revision, path = match.groups()
        self._path = unquote(path) if path else None
        self.gguf_file = self._path.rpartition("/")[2] if self._path else None
        self._repository = Repository(uri, settings, "model", repo, revision)
        self._uri = uri

    @property
    def revision(self) -> str:
        return self._repository.commit

    def files(self) -> dict[str, SourceFile]:
        every = self._repository.every_file()
        if self._path is not None and self.gguf_file is not None:
            if self._path not in every:
                raise SourceNotFound(f"{self._uri}: the repository has no file {self._path}.")
            return {self.gguf_file: every[self._path]}
        return {path: file for path, file in every.items() if is_plain_name(path)}

    def stream(self, file: SourceFile, start: int, length: int | None = None) -> Iterator[bytes]:
        return self._repository.stream(self._path or file.path, start, length)

    def close(self) -> None:
        self._repository.close()


def check_hub_text(uri: str, settings: Settings) -> None:
    del settings
    _dataset(uri)


def read_hub_text(uri: str, settings: Settings) -> bytes:
    name, data = read_hub(uri, settings)
    return column_of(data, name, _dataset(uri)[3])


def read_hub(uri: str, settings: Settings) -> tuple[str, bytes]:
    """Path and bytes of a file of a data set."""
    repo, revision, path, _ = _dataset(uri)
    repository = Repository(uri, settings, "dataset", repo, revision)
    try:
        if path not in repository.every_file():
            raise SourceNotFound(f"{uri}: the data set has no file {path}.")
        return path, bounded(repository.stream(path, 0, None), path)
    finally:
        repository.close()


def _dataset(uri: str) -> tuple[str, str | None, str, str]:
    address, _, query = uri.partition("?")
    match = _DATASET.fullmatch(address)
    if match is None:
        raise SourceError(f"{uri} is not a file of a data set; write hf://datasets/org/name@revision/file.txt.")
    repo, revision, path = match.groups()
    return repo, revision, unquote(path), parse_qs(query).get("column", ["text"])[0]


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
