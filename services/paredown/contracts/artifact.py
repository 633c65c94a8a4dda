"""Artifacts: what lies in the store, how anyone can check it, and how the catalogue and its front show it."""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from paredown.contracts.job import Calibration, Contract, DType, EvaluationSettings, Format, Tag
from paredown.contracts.recipes import Recipe, recipe_name
from paredown.contracts.report import Protocol, Report, Sha256, Verdict

MANIFEST_NAME = "manifest.json"


def _safe_path(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or not path or ".." in pure.parts or "\\" in path or str(pure) != path:
        raise ValueError(f"{path!r} is not a plain relative path")
    return path


FilePath = Annotated[str, AfterValidator(_safe_path)]


class ManifestFile(Contract):
    path: FilePath
    size_bytes: int
    sha256: Sha256


class BaseModelRecord(Contract):
    """The model that was compressed; where an artifact was, the model which that was made of in the first place."""

    uri: str
    revision: str = Field(description="Pinned: a commit, a version, or the fingerprint where the source has neither.")
    fingerprint: Sha256 = Field(description="Hash over the names and hashes of the model's files.")
    model_type: str
    parameters: int
    base_bytes: int


class Isolation(Contract):
    """What held the engine while it read the model."""

    process_group: bool = False
    empty_environment: bool = False
    no_network: bool = False
    non_root: bool = False
    no_new_privileges: bool = False
    notes: tuple[str, ...] = ()


class Ancestor(Contract):
    """An artifact that another was made of. The record stays when the artifact itself is deleted."""

    artifact_id: UUID
    manifest_sha256: Sha256 = Field(description="Of its manifest.json, as the store had it.")
    recipe: Recipe = Field(description="What made it of the one before, or of the base.")


class Manifest(Contract):
    """Everything needed to check an artifact and to make it again.

    An artifact made of another has the same base as that one; every figure of the base is that model's.
    """

    schema_version: Literal[1] = 1
    artifact_id: UUID
    job_id: UUID | None
    created_at: datetime
    base: BaseModelRecord
    lineage: tuple[Ancestor, ...] = Field((), description="The artifacts between base and this one, oldest first.")
    recipe: Recipe
    recipe_hash: Sha256
    format: Format
    calibration: Calibration | None
    calibration_tokens_sha256: Sha256 | None
    evaluation: EvaluationSettings | None
    dtype: DType
    files: tuple[ManifestFile, ...]
    isolation: Isolation
    tools: dict[str, str] = Field(description="Versions of what made it: paredown, torch, transformers, …")
    report: Report

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """All that lies between base and artifact, oldest first."""
        return (*(ancestor.recipe for ancestor in self.lineage), self.recipe)

    @property
    def recipe_name(self) -> str:
        """Such as `wanda-50% then gptq-4`."""
        return " then ".join(recipe_name(recipe) for recipe in self.recipes)


class Override(Contract):
    """A person's word against the gate's: the artifact missed its budget, and may be used all the same."""

    reason: str
    key_name: str = Field(description="The API key that gave it.")
    at: datetime


class ArtifactView(Contract):
    """An artifact as the catalogue lists it. The model and every figure of a base are of the model it began with."""

    id: UUID
    project: str
    job_id: UUID
    name: str
    model: str
    model_fingerprint: Sha256
    model_type: str
    parameters: int
    lineage: tuple[Ancestor, ...] = Field((), description="The artifacts between model and this one, oldest first.")
    recipe: Recipe
    recipe_name: str = Field(description="The recipe, after those of the artifacts that it was made of.")
    recipe_hash: Sha256
    format: Format
    size_bytes: int
    base_bytes: int
    size_ratio: float
    perplexity: float | None
    base_perplexity: float | None
    protocol_hash: Sha256 | None
    decode_tokens_per_second: float | None
    base_decode_tokens_per_second: float | None
    cost_per_million_tokens: float | None
    currency: str | None
    verdict: Verdict | None
    override: Override | None = Field(None, description="Where the verdict was overridden: by whom, when and why.")
    visibility: Literal["project", "everyone"]
    aliases: tuple[str, ...] = Field((), description="Names of its project that point at it.")
    tags: tuple[Tag, ...]
    created_at: datetime


CostAxis = Literal[
    "size_bytes",
    "decode_tokens_per_second",
    "time_to_first_token_seconds",
    "peak_memory_bytes",
    "cost_per_million_tokens",
    "task_drop",
]


class FrontPoint(Contract):
    """One model on the trade-off chart; the base itself has no artifact."""

    artifact_id: UUID | None
    name: str = Field(description="Of artifacts called the same, also the settings that tell them apart.")
    methods: tuple[str, ...]
    perplexity: float
    size_bytes: int
    decode_tokens_per_second: float | None
    time_to_first_token_seconds: float | None = None
    peak_memory_bytes: int | None = Field(None, description="Of the runtime that measured its speed.")
    cost_per_million_tokens: float | None
    verdict: Verdict | None
    on_front: bool


class Front(Contract):
    """The artifacts of one model under one protocol; `on_front` marks those that no other beats on both axes."""

    model: str
    model_fingerprint: Sha256
    protocol_hash: Sha256
    cost_axis: CostAxis
    currency: str | None = Field(None, description="Of the points' costs.")
    limits: dict[str, float] = Field({}, description="The budget that an artifact here had to meet last, by figure.")
    points: tuple[FrontPoint, ...]


class FrontEntry(Contract):
    """A front that there is: what was measured of one model under one protocol."""

    model: str
    model_fingerprint: Sha256
    protocol_hash: Sha256
    protocol: Protocol
    artifacts: int


class Page(Contract):
    """Fields that every list shares: pass `after` back to get the next page."""

    has_more: bool
    after: str | None


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify_files(manifest: Manifest, directory: Path) -> Iterator[str]:
    """One sentence for each file of the manifest that is missing, of another size, or of another hash."""
    for file in manifest.files:
        path = directory / file.path
        if not path.is_file():
            yield f"{file.path} is missing"
        elif path.stat().st_size != file.size_bytes:
            yield f"{file.path} has {path.stat().st_size} bytes, not {file.size_bytes}"
        elif sha256_file(path) != file.sha256:
            yield f"{file.path} has another SHA-256 than the manifest says"


JsonObject = dict[str, Any]
