"""Pages of lists, and bodies that only the API takes. Everything else it speaks is in contracts."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field

from paredown.contracts.access import KeyView
from paredown.contracts.artifact import ArtifactView, Page
from paredown.contracts.dataset import DatasetView
from paredown.contracts.job import Contract, JobEvent, JobView, Tag
from paredown.contracts.methods import MethodView
from paredown.contracts.service import FileLink, ModelEntry, PoolView


class JobPage(Page):
    items: tuple[JobView, ...]


class EventPage(Page):
    items: tuple[JobEvent, ...]


class ArtifactPage(Page):
    items: tuple[ArtifactView, ...]


class DatasetPage(Page):
    items: tuple[DatasetView, ...]


class FilePage(Page):
    items: tuple[FileLink, ...]


class KeyPage(Page):
    items: tuple[KeyView, ...]


class ModelPage(Page):
    items: tuple[ModelEntry, ...]


class MethodPage(Page):
    items: tuple[MethodView, ...]


class PoolPage(Page):
    items: tuple[PoolView, ...]


class ArtifactChanges(Contract):
    """What is given is changed; what is left out or null stays."""

    name: str | None = Field(None, min_length=1, max_length=120)
    tags: tuple[Tag, ...] | None = Field(None, max_length=32)
    visibility: Literal["project", "everyone"] | None = None


class Health(Contract):
    """Whether the process is alive, or ready."""

    status: Literal["ok"] = "ok"


Cursor = Annotated[
    str | None, Query(max_length=256, description="`after` of the page before; empty starts with the newest.")
]
Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
