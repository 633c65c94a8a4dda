"""A hub on this machine that speaks enough of the Hugging Face protocol for the real huggingface_hub client.

Repository information with siblings, sizes, LFS hashes and the commit; resolve with X-Repo-Commit, ETag, X-Linked-*,
a redirect of large files to another path as the real hub redirects to its file servers; tokens; models and data sets.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from tests.support.file_server import Handler, Served, serve

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".parquet")


@dataclass
class Repository:
    """Files of each commit, and the names (branches, tags) of commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit at the head of a branch; returns its hash."""
        listing = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(json.dumps([listing, len(self.commits)]).encode()).hexdigest()
        self.commits[sha] = files
        self.names[branch] = sha
        return sha


@dataclass
class Hub(Served):
    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    # Where large files are redirected to; empty means this server itself.
    cdn: str = ""

    def model(self, name: str) -> Repository:
        return self.models.setdefault(name, Repository())

    def dataset(self, name: str) -> Repository:
        return self.datasets.setdefault(name, Repository())


class HubHandler(Handler):
    served: Hub

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.note(path)
            kind, name, revision = match.groups()
            self._information(getattr(self.served, kind).get(name), name, revision or "main")
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.note(path)
            kind, name, revision, file = match.groups()
            repositories = self.served.datasets if kind else self.served.models
            self._resolve(repositories.get(name), revision, file, body=body)
        else:
            super().answer(body=body)

    def _information(self, repository: Repository | None, name: str, revision: str) -> None:
        commit = self._commit(repository, revision)
        if repository is None or commit is None:
            return
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest(), **_lfs(path, data)}
            for path, data in sorted(repository.commits[commit].items())
        ]
        body = {"id": name, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": []}
        self.plain(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: Repository | None, revision: str, path: str, *, body: bool) -> None:
        commit = self._commit(repository, revision)
        if repository is None or commit is None:
            return
        data = repository.commits[commit].get(path)
        if data is None:
            self.plain(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit}
        lfs = _lfs(path, data).get("lfs")
        if lfs is None:
            self.file(data, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, body=body)
            return
        # As on the real hub, large files come from elsewhere.
        stored = stored_path(data)
        self.served.files[stored] = data
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{lfs["sha256"]}"'}
        self.plain(302, b"", headers | linked | {"Location": f"{self.served.cdn or self.served.address}{stored}"})

    def _commit(self, repository: Repository | None, revision: str) -> str | None:
        """The commit, or None once the refusal is sent."""
        sent = self.headers.get("Authorization")
        if repository is None or (repository.token is not None and sent != f"Bearer {repository.token}"):
            if repository is not None and repository.gated:
                self.plain(403, b"", {"X-Error-Code": "GatedRepo"})
            else:
                self.plain(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.names.get(unquote(revision), revision)
        if commit not in repository.commits:
            self.plain(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit


def stored_path(data: bytes) -> str:
    """Where a large file is redirected to."""
    return f"/stored/{hashlib.sha256(data).hexdigest()}"


def _lfs(path: str, data: bytes) -> dict[str, dict[str, object]]:
    if not path.endswith(LFS_SUFFIXES):
        return {}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    with serve(hub, handler=HubHandler):
        yield hub
