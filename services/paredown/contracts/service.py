"""What the API says besides jobs and artifacts: problems, pools, models that one can submit, links to files."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from paredown.contracts.artifact import FilePath
from paredown.contracts.job import Contract, PoolName
from paredown.contracts.report import Sha256


class FieldProblem(Contract):
    """One field of a request that cannot be taken."""

    field: str | None = Field(description="Path of the field, such as recipe.0.bits; empty: the request as a whole.")
    detail: str


class Problem(Contract):
    """An error, as RFC 9457 has it. `code` is stable; `detail` is a sentence that says what to do."""

    type: str = "about:blank"
    title: str = Field(description="What the HTTP status means.")
    status: int
    code: str = Field(description="Stable name of the problem, the same that a failed job carries.")
    detail: str
    field: str | None = Field(None, description="Path of the first offending field, such as recipe.0.bits.")
    errors: tuple[FieldProblem, ...] = Field((), description="Every offending field, when several are known.")
    request_id: str | None = Field(None, description="Also in the X-Request-ID header and in the service's log.")


class PoolView(Contract):
    """A named group of workers that are alike, and what waits for it."""

    name: PoolName
    device: Literal["cpu", "cuda"]
    instance: str | None = Field(None, description="The price book's instance type; none: the pool has its own price.")
    price_per_hour: float
    currency: str
    memory_bytes: int | None = Field(None, description="Memory of one worker; jobs that need more are refused.")
    default: bool = Field(False, description="Chosen when neither the job nor its plan asks for another.")
    queued: int = Field(description="Jobs of every project that wait.")
    running: int


class ModelEntry(Contract):
    """A model that one can submit: a job of this project has used it, or an allowed package carries it."""

    uri: str
    origin: Literal["recorded", "package"]
    revision: str | None = None
    fingerprint: Sha256 | None = None
    model_type: str | None = None
    parameters: int | None = None
    base_bytes: int | None = Field(None, description="Parameters × 2.")
    size_bytes: int | None = Field(None, description="Bytes of the packaged file.")
    last_used_at: datetime | None = None


class FileLink(Contract):
    """A file of an artifact and an address that needs no key until `expires_at`."""

    path: FilePath
    size_bytes: int
    sha256: Sha256 | None = Field(description="None only for the manifest itself, which lists all other hashes.")
    url: str
    expires_at: datetime
