"""Who may call: API keys and their scopes."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import AwareDatetime, Field

from paredown.contracts.job import Contract


class Scope(StrEnum):
    """What a key may do within its project."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ARTIFACTS_READ = "artifacts:read"
    ARTIFACTS_WRITE = "artifacts:write"
    ARTIFACTS_OVERRIDE = "artifacts:override"
    ARTIFACTS_PROMOTE = "artifacts:promote"
    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    KEYS_ADMIN = "keys:admin"


class KeyRequest(Contract):
    """A key to be made."""

    name: str = Field(min_length=1, max_length=120, description="What the key is for.")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="What the key may do.")
    expires_at: AwareDatetime | None = Field(None, description="The key is refused from this time on.")


class KeyView(Contract):
    """A key as lists show it; the secret itself is stored nowhere."""

    id: UUID
    project: str
    name: str
    prefix: str = Field(description="First characters of the secret, to recognise it by.")
    scopes: tuple[Scope, ...]
    created_at: datetime
    last_used_at: datetime | None = Field(description="To the minute.")
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyCreated(Contract):
    """The only answer that ever holds the secret."""

    key: KeyView
    secret: str


class Me(Contract):
    """Whom the API takes the caller for."""

    project_id: UUID
    project: str
    key_id: UUID
    key_name: str
    scopes: tuple[Scope, ...]
