"""The tables. Migrations are written by hand; a test holds the two together.

Times are timestamptz by the database's clock. Only core/jobs.py writes jobs and job_events. Rows of jobs are never
deleted, and those of artifacts only marked.
"""

from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JsonObject = dict[str, Any]


class Base(DeclarativeBase):
    type_annotation_map = {
        datetime: DateTime(timezone=True),
        str: Text,
        # None is SQL NULL: a column without a value, not one that holds JSON null.
        JsonObject: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
    }


class ProjectRow(Base):
    """Owns everything else; a key speaks for one project."""

    __tablename__ = "projects"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKeyRow(Base):
    """A key is stored as its HMAC only; `prefix` is what people recognise it by."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class JobRow(Base):
    """One job. Every write to a running job names id + epoch + state."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'rejected', 'failed', 'cancelled')", name="jobs_state_known"
        ),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="jobs_lease_while_running"),
        CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)", name="jobs_finished_at_when_terminal"
        ),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="jobs_error_when_failed"),
        CheckConstraint("(state = 'running') = (claimed_at IS NOT NULL)", name="jobs_claimed_while_running"),
        CheckConstraint("NOT cancel_requested OR state IN ('running', 'cancelled')", name="jobs_cancel_is_heeded"),
        Index("jobs_due", "pool", text("priority DESC"), "run_at", "id", postgresql_where=text("state = 'queued'")),
        Index("jobs_leases", "lease_until", postgresql_where=text("state = 'running'")),
        Index(
            "jobs_deadlines",
            "deadline_at",
            postgresql_where=text("state IN ('queued', 'running') AND deadline_at IS NOT NULL"),
        ),
        Index("jobs_by_project", "project_id", text("created_at DESC"), text("id DESC")),
        Index("jobs_by_sweep", "sweep_id", "sweep_position", postgresql_where=text("sweep_id IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    sweep_id: Mapped[UUID | None] = mapped_column(ForeignKey("sweeps.id"))
    sweep_position: Mapped[int | None] = mapped_column(Integer)
    # Not due before this job has ended.
    after_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    state: Mapped[str] = mapped_column(server_default="queued")
    phase: Mapped[str | None]
    progress: Mapped[JsonObject | None]
    spec: Mapped[JsonObject]
    model: Mapped[str]
    recipe_hash: Mapped[str]
    recipe_name: Mapped[str]
    pool: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer, server_default="0")
    epoch: Mapped[int] = mapped_column(Integer, server_default="0")
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    last_seq: Mapped[int] = mapped_column(Integer, server_default="0")
    cancel_requested: Mapped[bool] = mapped_column(Boolean, server_default="false")
    worker: Mapped[str | None]
    # Begin of the present epoch; with lease_until, what worker_seconds is counted from.
    claimed_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    error: Mapped[JsonObject | None]
    # What the rehearsal of a job that asked for one made of its plan.
    canary: Mapped[JsonObject | None]
    run_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deadline_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # Seconds of worker time over all finished epochs: what the job cost.
    worker_seconds: Mapped[float] = mapped_column(Float, server_default="0")


class SweepRow(Base):
    """Many recipes over one model. What state it is in is told by its jobs alone."""

    __tablename__ = "sweeps"
    __table_args__ = (Index("sweeps_by_project", "project_id", text("created_at DESC"), text("id DESC")),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    # jsonb would sort the places of a grid, and with them the numbers of its combinations.
    spec: Mapped[JsonObject] = mapped_column(JSON)
    # Position → artifact that was there already, and its verdict under this sweep's budget.
    reused: Mapped[JsonObject] = mapped_column(server_default="{}")
    cancelled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SearchRow(Base):
    """A goal, the recipes that may serve it, and what was chosen in the end."""

    __tablename__ = "searches"
    __table_args__ = (
        CheckConstraint("state IN ('exploring', 'confirming', 'finished', 'cancelled')", name="searches_state_known"),
        CheckConstraint(
            "(state IN ('exploring', 'confirming')) = (finished_at IS NULL)", name="searches_finished_at_when_terminal"
        ),
        Index("searches_by_project", "project_id", text("created_at DESC"), text("id DESC")),
        Index("searches_open", "created_at", postgresql_where=text("finished_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    spec: Mapped[JsonObject]
    # The model's, as it was described when the search was submitted.
    revision: Mapped[str]
    # Parameters, planned size ratio and pool of each recipe that may be tried.
    candidates: Mapped[list[JsonObject]] = mapped_column(JSONB)
    ruled_out: Mapped[int] = mapped_column(Integer)
    state: Mapped[str]
    chosen: Mapped[int | None] = mapped_column(Integer)
    explanation: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class TrialRow(Base):
    """One candidate of a search, tried once on each rung."""

    __tablename__ = "trials"
    __table_args__ = (UniqueConstraint("search_id", "rung", "candidate", name="trials_once"),)

    search_id: Mapped[UUID] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    rung: Mapped[str]
    candidate: Mapped[int] = mapped_column(Integer)
    # Null where an artifact that was there already took its place.
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    # What was measured; empty where the job ended without, null until it ends.
    figures: Mapped[JsonObject | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyRow(Base):
    """The first create with a key writes this in the same transaction as what it creates."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("num_nonnulls(job_id, sweep_id, search_id) = 1", name="idempotency_keys_stand_for_one"),
    )

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    # Deferred, because this row comes first: it is what a concurrent create with the same key waits for.
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", deferrable=True, initially="DEFERRED"))
    sweep_id: Mapped[UUID | None] = mapped_column(ForeignKey("sweeps.id", deferrable=True, initially="DEFERRED"))
    search_id: Mapped[UUID | None] = mapped_column(ForeignKey("searches.id", deferrable=True, initially="DEFERRED"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class JobEventRow(Base):
    """A job's history. Partitioned by month on `at`; `seq` is assigned under the job's row lock.

    No foreign key to jobs: making or dropping a partition would then lock the queue.
    """

    __tablename__ = "job_events"
    __table_args__ = (
        Index("job_events_by_position", "position", "job_id", "seq"),
        {"postgresql_partition_by": "RANGE (at)"},
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    # The clock of the moment, not of the transaction's begin, so that a job's events lie in the order of their seq.
    at: Mapped[datetime] = mapped_column(primary_key=True, server_default=func.clock_timestamp())
    type: Mapped[str]
    data: Mapped[JsonObject]
    # The writing transaction's id: the poller reads everything older than the oldest transaction still open.
    position: Mapped[int] = mapped_column(BigInteger, server_default=text("(pg_current_xact_id()::text)::bigint"))


class ArtifactRow(Base):
    """The immutable result of one finished job; only verdict, visibility, tags, name and deletion change."""

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("job_id", name="artifacts_one_per_job"),
        Index("artifacts_by_project", "project_id", text("created_at DESC"), text("id DESC")),
        Index("artifacts_by_model", "model_fingerprint", "protocol_hash"),
        Index("artifacts_by_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        Index("artifacts_by_tag", "tags", postgresql_using="gin"),
        Index("artifacts_to_sweep", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL AND swept_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"))
    # The artifact that this one was made of.
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("artifacts.id"))
    epoch: Mapped[int] = mapped_column(Integer)
    name: Mapped[str]
    model: Mapped[str]
    model_fingerprint: Mapped[str]
    model_type: Mapped[str]
    parameters: Mapped[int] = mapped_column(BigInteger)
    recipe_hash: Mapped[str]
    recipe_name: Mapped[str]
    methods: Mapped[list[str]]
    format: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    base_bytes: Mapped[int] = mapped_column(BigInteger)
    perplexity: Mapped[float | None]
    base_perplexity: Mapped[float | None]
    protocol_hash: Mapped[str | None]
    verdict: Mapped[str | None]
    # Where a person has overridden the verdict: why, by which key, when.
    override_reason: Mapped[str | None]
    overridden_by: Mapped[str | None]
    overridden_at: Mapped[datetime | None]
    visibility: Mapped[str] = mapped_column(server_default="project")
    tags: Mapped[list[str]] = mapped_column(server_default="{}")
    manifest: Mapped[JsonObject]
    storage_prefix: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]
    # When the files of a deleted artifact were removed from the store.
    swept_at: Mapped[datetime | None]


class AliasRow(Base):
    """A name that points at an artifact of its project. A protected one takes no artifact that missed its budget."""

    __tablename__ = "aliases"
    __table_args__ = (
        UniqueConstraint("project_id", "name", name="aliases_once"),
        Index("aliases_by_artifact", "artifact_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    artifact_id: Mapped[UUID] = mapped_column(ForeignKey("artifacts.id"))
    protected: Mapped[bool] = mapped_column(Boolean, server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    moved_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AliasMoveRow(Base):
    """Where an alias pointed, from when on, and by whose key. It names the alias, which may be gone by now."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index("alias_moves_by_alias", "project_id", "alias", text("id DESC")),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    alias: Mapped[str]
    # None where the alias was new.
    from_id: Mapped[UUID | None] = mapped_column(ForeignKey("artifacts.id"))
    # None where it was removed.
    to_id: Mapped[UUID | None] = mapped_column(ForeignKey("artifacts.id"))
    protected: Mapped[bool] = mapped_column(Boolean)
    key_name: Mapped[str]
    reason: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class ModelRow(Base):
    """A model that a job of this project has fetched or planned with."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "uri", "revision", name="models_once"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    uri: Mapped[str]
    revision: Mapped[str]
    fingerprint: Mapped[str] = mapped_column(index=True)
    model_type: Mapped[str]
    parameters: Mapped[int] = mapped_column(BigInteger)
    config: Mapped[JsonObject]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DatasetRow(Base):
    """Text that a user uploaded, addressed as dataset://ID; the bytes lie in the object store."""

    __tablename__ = "datasets"
    __table_args__ = (Index("datasets_by_project", "project_id", text("created_at DESC"), text("id DESC")),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CalibrationRow(Base):
    """Token blocks that jobs calibrated on, addressed as calibration://ID; the bytes lie in the object store.

    Only marked when deleted: a job that named it by an idempotency key is still the same job.
    """

    __tablename__ = "calibrations"
    __table_args__ = (
        Index(
            "calibrations_once",
            "project_id",
            "tokens_sha256",
            "sequence_length",
            "tokenizer_sha256",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("calibrations_by_project", "project_id", text("created_at DESC"), text("id DESC")),
        Index("calibrations_by_model", "project_id", "model_fingerprint"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    # The first job that drew these tokens.
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"))
    # Of the tokens as int64, row by row: it does not tell how long a row is.
    tokens_sha256: Mapped[str]
    samples: Mapped[int] = mapped_column(Integer)
    sequence_length: Mapped[int] = mapped_column(Integer)
    seed: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str]
    source_sha256: Mapped[str]
    tokenizer_sha256: Mapped[str]
    chat_template_sha256: Mapped[str | None]
    held_out_windows: Mapped[int | None] = mapped_column(Integer)
    coverage: Mapped[JsonObject] = mapped_column(server_default="{}")
    model: Mapped[str]
    model_fingerprint: Mapped[str]
    model_type: Mapped[str]
    vocab_size: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    file_sha256: Mapped[str]
    storage_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class BaselineRow(Base):
    """Quality of an uncompressed model under one protocol: measured once, used by every later job."""

    __tablename__ = "baselines"

    model_fingerprint: Mapped[str] = mapped_column(primary_key=True)
    protocol_hash: Mapped[str] = mapped_column(primary_key=True)
    dtype: Mapped[str] = mapped_column(primary_key=True)
    device_kind: Mapped[str] = mapped_column(primary_key=True)
    evaluation: Mapped[JsonObject]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PlanOutcomeRow(Base):
    """What a job took beside what its plan's formulas said; written with the job's end, never changed."""

    __tablename__ = "plan_outcomes"
    __table_args__ = (
        Index("plan_outcomes_by_pool", "pool", text("created_at DESC"), text("job_id DESC")),
        Index("plan_outcomes_by_project", "project_id", text("created_at DESC"), text("job_id DESC")),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    pool: Mapped[str]
    methods: Mapped[list[str]]
    # The version of the formulas that planned it.
    formulas: Mapped[int] = mapped_column(Integer)
    planned_seconds: Mapped[float]
    seconds: Mapped[float]
    planned_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    planned_output_bytes: Mapped[int] = mapped_column(BigInteger)
    output_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class InstancePriceRow(Base):
    """A line of a project's price book."""

    __tablename__ = "instance_prices"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    price_per_hour: Mapped[float]
    currency: Mapped[str]
    as_of: Mapped[date]
