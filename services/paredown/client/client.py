"""PareClient: the typed SDK. Every method speaks to one route and answers with the contract that the API promises."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, TypeAdapter

from paredown.client.credentials import connect
from paredown.client.downloads import DownloadProgress, fetch_artifact, stored_problems
from paredown.client.errors import PareApiError
from paredown.client.events import PATIENCE_SECONDS, follow
from paredown.client.transport import MAX_TRIES, Transport
from paredown.contracts.access import KeyCreated, KeyView, Me, Scope
from paredown.contracts.alias import SIGN, AliasDetails, AliasView
from paredown.contracts.artifact import ArtifactView, CostAxis, Front, FrontEntry, Manifest
from paredown.contracts.calibration import CalibrationView
from paredown.contracts.dataset import DatasetView
from paredown.contracts.job import JobEvent, JobSpec, JobState, JobView, Plan, PlanOutcomes
from paredown.contracts.methods import MethodView
from paredown.contracts.prices import PriceBook
from paredown.contracts.report import Verdict
from paredown.contracts.search import SearchDetails, SearchSpec, SearchView
from paredown.contracts.service import FileLink, ModelEntry, PoolView
from paredown.contracts.sweep import SweepDetails, SweepPlan, SweepSpec, SweepView

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """Part of a list; pass `after` back to get the next part."""

    model_config = ConfigDict(frozen=True)

    items: tuple[T, ...]
    has_more: bool
    after: str | None


_JOB = TypeAdapter(JobView)
_JOBS = TypeAdapter(Page[JobView])
_SWEEP = TypeAdapter(SweepDetails)
_SWEEPS = TypeAdapter(Page[SweepView])
_SWEEP_PLAN = TypeAdapter(SweepPlan)
_SEARCH = TypeAdapter(SearchDetails)
_SEARCHES = TypeAdapter(Page[SearchView])
_EVENTS = TypeAdapter(Page[JobEvent])
_PLAN = TypeAdapter(Plan)
_PLAN_OUTCOMES = TypeAdapter(PlanOutcomes)
_METHODS = TypeAdapter(Page[MethodView])
_METHOD = TypeAdapter(MethodView)
_MODELS = TypeAdapter(Page[ModelEntry])
_FRONT = TypeAdapter(Front)
_FRONTS = TypeAdapter(Page[FrontEntry])
_POOLS = TypeAdapter(Page[PoolView])
_DATASET = TypeAdapter(DatasetView)
_DATASETS = TypeAdapter(Page[DatasetView])
_CALIBRATION = TypeAdapter(CalibrationView)
_CALIBRATIONS = TypeAdapter(Page[CalibrationView])
_ARTIFACT = TypeAdapter(ArtifactView)
_ARTIFACTS = TypeAdapter(Page[ArtifactView])
_ALIAS = TypeAdapter(AliasDetails)
_ALIASES = TypeAdapter(Page[AliasView])
_MANIFEST = TypeAdapter(Manifest)
_PRICES = TypeAdapter(PriceBook)
_FILES = TypeAdapter(Page[FileLink])
_KEYS = TypeAdapter(Page[KeyView])
_CREATED_KEY = TypeAdapter(KeyCreated)
_ME = TypeAdapter(Me)


class PareClient:
    """A connection to one Pare service. Raises PareApiError. Not for sharing between threads while `close` runs.

    `tries`: how often a call that may be repeated is made, with growing pauses, before the service counts as away.
    """

    def __init__(self, base_url: str, key: str | None = None, timeout: float = 60.0, tries: int = MAX_TRIES) -> None:
        self._transport = Transport(base_url, key, timeout, tries=tries)

    @property
    def base_url(self) -> str:
        return self._transport.base_url

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> "PareClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Jobs

    def submit(self, spec: JobSpec, idempotency_key: str | None = None) -> JobView:
        """Queue a job. Tries again on a bad connection; the idempotency key keeps that from making two jobs."""
        return self._transport.read(
            _JOB,
            "POST",
            "/v1/jobs",
            idempotent=True,
            content=spec.model_dump_json(),
            headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())},
        )

    def plan(self, spec: JobSpec) -> Plan:
        """What the job would need; nothing is queued."""
        return self._transport.read(
            _PLAN,
            "POST",
            "/v1/plans",
            idempotent=True,
            content=spec.model_dump_json(),
            headers={"Content-Type": "application/json"},
        )

    def plan_outcomes(self, limit: int = 20) -> PlanOutcomes:
        """What the project's latest jobs took beside what was planned, newest first."""
        return self._transport.read(_PLAN_OUTCOMES, "GET", "/v1/plans/outcomes", params={"limit": limit})

    def job(self, job_id: UUID | str) -> JobView:
        return self._transport.read(_JOB, "GET", f"/v1/jobs/{job_id}")

    def jobs_page(
        self,
        *,
        states: Sequence[JobState] = (),
        model: str | None = None,
        pool: str | None = None,
        method: str | None = None,
        sweep: UUID | str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[JobView]:
        """Newest first."""
        parameters = _parameters(
            state=[state.value for state in states],
            model=model,
            pool=pool,
            method=method,
            sweep=sweep,
            after=after,
            limit=limit,
        )
        return self._transport.read(_JOBS, "GET", "/v1/jobs", params=parameters)

    def jobs(self, **filters: Any) -> Iterator[JobView]:
        """All jobs that fit the filters of `jobs_page`, page by page."""
        return _all_pages(self.jobs_page, filters)

    def cancel(self, job_id: UUID | str) -> JobView:
        return self._transport.read(_JOB, "POST", f"/v1/jobs/{job_id}/cancel")

    def retry(self, job_id: UUID | str) -> JobView:
        """Queue a failed job again; its history is kept."""
        return self._transport.read(_JOB, "POST", f"/v1/jobs/{job_id}/retry")

    def events(
        self, job_id: UUID | str, last_event_id: int | None = None, patience_seconds: float = PATIENCE_SECONDS
    ) -> Iterator[JobEvent]:
        """A job's events from the start, or after `last_event_id`, live until the job is finished."""
        job_uuid = UUID(str(job_id))
        return follow(
            self._transport, job_uuid, last_event_id, lambda: self.job(job_uuid).state.terminal, patience_seconds
        )

    def events_page(self, job_id: UUID | str, *, after: int = 0, limit: int = 100) -> Page[JobEvent]:
        """The events behind `after` that there are now; for pages that ask again, where `events` waits."""
        parameters = _parameters(format="json", after=after, limit=limit)
        return self._transport.read(_EVENTS, "GET", f"/v1/jobs/{job_id}/events", params=parameters)

    def wait(self, job_id: UUID | str, on_event: Callable[[JobEvent], None] | None = None) -> JobView:
        """The job once it is finished, in whichever way."""
        for event in self.events(job_id):
            if on_event:
                on_event(event)
        return self.job(job_id)

    # Sweeps

    def submit_sweep(self, spec: SweepSpec, idempotency_key: str | None = None) -> SweepDetails:
        """Queue a job for each recipe, all or none. The idempotency key keeps a bad connection from making two."""
        return self._transport.read(
            _SWEEP,
            "POST",
            "/v1/sweeps",
            idempotent=True,
            content=spec.model_dump_json(),
            headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())},
        )

    def plan_sweep(self, spec: SweepSpec) -> SweepPlan:
        """What the sweep would need; nothing is queued."""
        return self._transport.read(
            _SWEEP_PLAN,
            "POST",
            "/v1/plans/sweep",
            idempotent=True,
            content=spec.model_dump_json(),
            headers={"Content-Type": "application/json"},
        )

    def sweep(self, sweep_id: UUID | str) -> SweepDetails:
        return self._transport.read(_SWEEP, "GET", f"/v1/sweeps/{sweep_id}")

    def sweeps_page(self, *, after: str | None = None, limit: int = 50) -> Page[SweepView]:
        """Newest first."""
        return self._transport.read(_SWEEPS, "GET", "/v1/sweeps", params=_parameters(after=after, limit=limit))

    def sweeps(self, **filters: Any) -> Iterator[SweepView]:
        return _all_pages(self.sweeps_page, filters)

    def cancel_sweep(self, sweep_id: UUID | str) -> SweepDetails:
        """Cancel every job of it that has not ended."""
        return self._transport.read(_SWEEP, "POST", f"/v1/sweeps/{sweep_id}/cancel")

    # Searches

    def submit_search(self, spec: SearchSpec, idempotency_key: str | None = None) -> SearchDetails:
        """Enter a goal; the dispatcher tries recipes for it. The idempotency key keeps a bad connection from two."""
        return self._transport.read(
            _SEARCH,
            "POST",
            "/v1/searches",
            idempotent=True,
            content=spec.model_dump_json(),
            headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())},
        )

    def search(self, search_id: UUID | str) -> SearchDetails:
        return self._transport.read(_SEARCH, "GET", f"/v1/searches/{search_id}")

    def searches_page(self, *, after: str | None = None, limit: int = 50) -> Page[SearchView]:
        """Newest first."""
        return self._transport.read(_SEARCHES, "GET", "/v1/searches", params=_parameters(after=after, limit=limit))

    def searches(self, **filters: Any) -> Iterator[SearchView]:
        return _all_pages(self.searches_page, filters)

    def cancel_search(self, search_id: UUID | str) -> SearchDetails:
        """End it, and cancel its jobs that have not ended."""
        return self._transport.read(_SEARCH, "POST", f"/v1/searches/{search_id}/cancel")

    # What can be done, and with what

    def methods(self) -> tuple[MethodView, ...]:
        return self._transport.read(_METHODS, "GET", "/v1/methods").items

    def method(self, name: str) -> MethodView:
        return self._transport.read(_METHOD, "GET", f"/v1/methods/{name}")

    def pools(self) -> tuple[PoolView, ...]:
        return self._transport.read(_POOLS, "GET", "/v1/pools").items

    def models_page(self, *, after: str | None = None, limit: int = 50) -> Page[ModelEntry]:
        return self._transport.read(_MODELS, "GET", "/v1/models", params=_parameters(after=after, limit=limit))

    def models(self) -> Iterator[ModelEntry]:
        """Models that jobs of this project have used."""
        return _all_pages(self.models_page, {})

    def front(self, model: str, cost_axis: CostAxis = "size_bytes", protocol: str | None = None) -> Front:
        """The model (a URI or fingerprint) and its artifacts under one protocol, by default the latest."""
        parameters = _parameters(model=model, cost_axis=cost_axis, protocol=protocol)
        return self._transport.read(_FRONT, "GET", "/v1/models/front", params=parameters)

    def fronts(self) -> tuple[FrontEntry, ...]:
        """The models and protocols that have a front, newest first."""
        return self._transport.read(_FRONTS, "GET", "/v1/models/fronts").items

    # Prices

    def prices(self) -> PriceBook:
        """The project's instance types, by which jobs and serving are reckoned."""
        return self._transport.read(_PRICES, "GET", "/v1/prices")

    def change_prices(self, change: Callable[[PriceBook], PriceBook]) -> PriceBook:
        """Read the book, and write what `change` makes of it. Raises PareApiError `precondition_failed` when somebody
        else changed it meanwhile."""
        answer = self._transport.call("GET", "/v1/prices")
        book = change(_PRICES.validate_json(answer.content))
        headers = {"Content-Type": "application/json", "If-Match": answer.headers["etag"]}
        content = book.model_dump_json()
        # Not idempotent: were it sent twice, its own first try would pass for somebody else's change.
        return self._transport.read(_PRICES, "PUT", "/v1/prices", idempotent=False, content=content, headers=headers)

    # Data sets

    def upload_dataset(self, path: Path, name: str | None = None) -> DatasetView:
        """Send calibration text (UTF-8 or JSON lines); use it as dataset://ID."""
        with path.open("rb") as stream:
            return self._transport.read(
                _DATASET,
                "POST",
                "/v1/datasets",
                data={"name": name or path.name},
                files={"file": (path.name, stream, "application/octet-stream")},
                tries=1,  # the stream is used up by the first
            )

    def dataset(self, dataset_id: UUID | str) -> DatasetView:
        return self._transport.read(_DATASET, "GET", f"/v1/datasets/{dataset_id}")

    def datasets_page(self, *, after: str | None = None, limit: int = 50) -> Page[DatasetView]:
        return self._transport.read(_DATASETS, "GET", "/v1/datasets", params=_parameters(after=after, limit=limit))

    def datasets(self) -> Iterator[DatasetView]:
        return _all_pages(self.datasets_page, {})

    def delete_dataset(self, dataset_id: UUID | str) -> None:
        self._transport.call("DELETE", f"/v1/datasets/{dataset_id}")

    # Calibrations

    def calibration(self, calibration_id: UUID | str) -> CalibrationView:
        return self._transport.read(_CALIBRATION, "GET", f"/v1/calibrations/{calibration_id}")

    def calibrations_page(
        self, *, tokens_sha256: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[CalibrationView]:
        """Newest first; `tokens_sha256` is as manifests have it."""
        parameters = _parameters(tokens_sha256=tokens_sha256, after=after, limit=limit)
        return self._transport.read(_CALIBRATIONS, "GET", "/v1/calibrations", params=parameters)

    def calibrations(self, **filters: Any) -> Iterator[CalibrationView]:
        """The token blocks that the project's jobs drew."""
        return _all_pages(self.calibrations_page, filters)

    def download_calibration(self, calibration_id: UUID | str, path: Path) -> CalibrationView:
        """Write its tokens to a file, checked by their hash: NumPy's .npy, int32, samples × sequence_length."""
        view = self.calibration(calibration_id)
        content = self._transport.call("GET", f"/v1/calibrations/{calibration_id}/tokens").content
        if hashlib.sha256(content).hexdigest() != view.file_sha256:
            raise PareApiError(
                "file_corrupt", f"The stored tokens of {view.uri} have another SHA-256 than they should."
            )
        path.write_bytes(content)
        return view

    def delete_calibration(self, calibration_id: UUID | str) -> None:
        self._transport.call("DELETE", f"/v1/calibrations/{calibration_id}")

    # Artifacts

    def artifacts_page(
        self,
        *,
        search: str | None = None,
        tag: str | None = None,
        model: str | None = None,
        method: str | None = None,
        verdict: Verdict | None = None,
        parent: UUID | str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[ArtifactView]:
        """Newest first."""
        parameters = _parameters(
            search=search,
            tag=tag,
            model=model,
            method=method,
            verdict=verdict,
            parent=parent,
            after=after,
            limit=limit,
        )
        return self._transport.read(_ARTIFACTS, "GET", "/v1/artifacts", params=parameters)

    def artifacts(self, **filters: Any) -> Iterator[ArtifactView]:
        """All artifacts that fit the filters of `artifacts_page`, page by page."""
        return _all_pages(self.artifacts_page, filters)

    def artifact(self, artifact_id: UUID | str) -> ArtifactView:
        return self._transport.read(_ARTIFACT, "GET", f"/v1/artifacts/{artifact_id}")

    def manifest(self, artifact_id: UUID | str) -> Manifest:
        return self._transport.read(_MANIFEST, "GET", f"/v1/artifacts/{artifact_id}/manifest")

    def update_artifact(
        self,
        artifact_id: UUID | str,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        visibility: Literal["project", "everyone"] | None = None,
    ) -> ArtifactView:
        """Change what is given. Raises PareApiError `precondition_failed` when somebody else changed it meanwhile."""
        path = f"/v1/artifacts/{artifact_id}"
        etag = self._transport.call("GET", path).headers.get("etag")
        changes = {"name": name, "tags": None if tags is None else list(tags), "visibility": visibility}
        return self._transport.read(
            _ARTIFACT,
            "PATCH",
            path,
            json={field: value for field, value in changes.items() if value is not None},
            headers={"If-Match": etag} if etag else {},
        )

    def override_verdict(self, artifact_id: UUID | str, reason: str) -> ArtifactView:
        """Take an artifact that missed its budget for good all the same; the reason stays with it."""
        return self._transport.read(_ARTIFACT, "POST", f"/v1/artifacts/{artifact_id}/override", json={"reason": reason})

    def delete_artifact(self, artifact_id: UUID | str) -> None:
        self._transport.call("DELETE", f"/v1/artifacts/{artifact_id}")

    def files(self, artifact_id: UUID | str) -> tuple[FileLink, ...]:
        """The files with addresses that anyone may fetch for some minutes."""
        return self._transport.read(_FILES, "GET", f"/v1/artifacts/{artifact_id}/files").items

    def download(self, artifact_id: UUID | str, directory: Path, progress: DownloadProgress | None = None) -> Path:
        """Bring all files and the manifest to `directory`, each checked by its hash; run again, it resumes."""
        return fetch_artifact(self._transport, self.manifest(artifact_id), directory, progress)

    def verify(self, artifact_id: UUID | str, progress: DownloadProgress | None = None) -> list[str]:
        """Read every stored byte and compare it with the manifest: one sentence for each file that differs."""
        return list(stored_problems(self._transport, self.manifest(artifact_id), progress))

    # Aliases

    def aliases_page(self, *, after: str | None = None, limit: int = 50) -> Page[AliasView]:
        """Newest first."""
        return self._transport.read(_ALIASES, "GET", "/v1/aliases", params=_parameters(after=after, limit=limit))

    def aliases(self) -> Iterator[AliasView]:
        return _all_pages(self.aliases_page, {})

    def alias(self, name: str) -> AliasDetails:
        return self._transport.read(_ALIAS, "GET", _alias_path(name))

    def set_alias(
        self, name: str, artifact_id: UUID | str, *, protected: bool | None = None, reason: str | None = None
    ) -> AliasDetails:
        """Make the alias, or move it; `protected` None leaves that as it is.

        Raises PareApiError `alias_protected` where it takes no artifact that missed its budget.
        """
        body = {"artifact_id": str(artifact_id), "protected": protected, "reason": reason}
        return self._transport.read(_ALIAS, "PUT", _alias_path(name), idempotent=True, json=body)

    def remove_alias(self, name: str) -> None:
        self._transport.call("DELETE", _alias_path(name))

    def artifact_id(self, reference: UUID | str) -> UUID:
        """The artifact that an id or @NAME of an alias stands for now. Raises PareApiError, or ValueError."""
        if isinstance(reference, str) and reference.startswith(SIGN):
            return self.alias(reference.removeprefix(SIGN)).artifact_id
        return UUID(str(reference))

    # Access

    def create_key(self, name: str, scopes: Sequence[Scope], expires_at: datetime | None = None) -> KeyCreated:
        """A new key of this key's project. The secret is shown this once."""
        body = {
            "name": name,
            "scopes": list(scopes),
            "expires_at": expires_at.isoformat() if expires_at else None,
        }
        return self._transport.read(_CREATED_KEY, "POST", "/v1/keys", json=body)

    def keys(self) -> tuple[KeyView, ...]:
        return self._transport.read(_KEYS, "GET", "/v1/keys").items

    def revoke_key(self, key_id: UUID | str) -> None:
        self._transport.call("DELETE", f"/v1/keys/{key_id}")

    def me(self) -> Me:
        """Whom this key speaks for."""
        return self._transport.read(_ME, "GET", "/v1/me")


def _alias_path(name: str) -> str:
    return f"/v1/aliases/{quote(name, safe='')}"


def _parameters(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != []}


def _all_pages(page_of: Callable[..., Page[T]], filters: dict[str, Any]) -> Iterator[T]:
    page = page_of(**filters)
    yield from page.items
    while page.has_more:
        page = page_of(**{**filters, "after": page.after})
        yield from page.items


__all__ = ["DownloadProgress", "Page", "PareApiError", "PareClient", "connect"]
