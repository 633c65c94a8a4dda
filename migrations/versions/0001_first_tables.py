"""The first tables: projects and keys, the queue with its history, the catalogue."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

UUID = sa.Uuid()
JSONB = postgresql.JSONB()
TEXTS = sa.ARRAY(sa.Text())
TIME = sa.DateTime(timezone=True)
NOW = sa.func.now()


def _id() -> sa.Column[object]:
    return sa.Column("id", UUID, primary_key=True)


def _project() -> sa.Column[object]:
    return sa.Column("project_id", UUID, sa.ForeignKey("projects.id"), nullable=False)


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", TIME, server_default=NOW, nullable=False)


def upgrade() -> None:
    op.create_table("projects", _id(), sa.Column("name", sa.Text(), nullable=False, unique=True), _created_at())
    op.create_table(
        "api_keys",
        _id(),
        _project(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("scopes", TEXTS, nullable=False),
        _created_at(),
        sa.Column("last_used_at", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
    )
    op.create_index("ix_api_keys_project_id", "api_keys", ["project_id"])
    _create_queue()
    _create_catalogue()


def _create_queue() -> None:
    op.create_table(
        "jobs",
        _id(),
        _project(),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("phase", sa.Text()),
        sa.Column("progress", JSONB),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("recipe_hash", sa.Text(), nullable=False),
        sa.Column("recipe_name", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_seq", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("claimed_at", TIME),
        sa.Column("lease_until", TIME),
        sa.Column("error", JSONB),
        sa.Column("run_at", TIME, server_default=NOW, nullable=False),
        sa.Column("deadline_at", TIME),
        _created_at(),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("worker_seconds", sa.Float(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'rejected', 'failed', 'cancelled')", name="jobs_state_known"
        ),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="jobs_lease_while_running"),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)", name="jobs_finished_at_when_terminal"
        ),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="jobs_error_when_failed"),
        sa.CheckConstraint("(state = 'running') = (claimed_at IS NOT NULL)", name="jobs_claimed_while_running"),
        sa.CheckConstraint("NOT cancel_requested OR state IN ('running', 'cancelled')", name="jobs_cancel_is_heeded"),
    )
    queued, running = sa.text("state = 'queued'"), sa.text("state = 'running'")
    due = ["pool", sa.text("priority DESC"), "run_at", "id"]
    op.create_index("jobs_due", "jobs", due, postgresql_where=queued)
    op.create_index("jobs_leases", "jobs", ["lease_until"], postgresql_where=running)
    open_with_deadline = sa.text("state IN ('queued', 'running') AND deadline_at IS NOT NULL")
    op.create_index("jobs_deadlines", "jobs", ["deadline_at"], postgresql_where=open_with_deadline)
    _index_by_project("jobs")
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", UUID, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("job_id", UUID, sa.ForeignKey("jobs.id", deferrable=True, initially="DEFERRED"), nullable=False),
        _created_at(),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", UUID, primary_key=True),
        sa.Column("seq", sa.Integer(), primary_key=True),
        sa.Column("at", TIME, server_default=sa.func.clock_timestamp(), primary_key=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column(
            "position", sa.BigInteger(), server_default=sa.text("(pg_current_xact_id()::text)::bigint"), nullable=False
        ),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index("job_events_by_position", "job_events", ["position", "job_id", "seq"])
    # The months are made by core/partitions.py; until it first ran, and should it ever stop, this one takes all.
    op.execute("CREATE TABLE job_events_default PARTITION OF job_events DEFAULT")


def _create_catalogue() -> None:
    op.create_table(
        "artifacts",
        _id(),
        _project(),
        sa.Column("job_id", UUID, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_fingerprint", sa.Text(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("recipe_hash", sa.Text(), nullable=False),
        sa.Column("recipe_name", sa.Text(), nullable=False),
        sa.Column("methods", TEXTS, nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("base_bytes", sa.BigInteger(), nullable=False),
        sa.Column("perplexity", sa.Float()),
        sa.Column("base_perplexity", sa.Float()),
        sa.Column("protocol_hash", sa.Text()),
        sa.Column("verdict", sa.Text()),
        sa.Column("visibility", sa.Text(), server_default="project", nullable=False),
        sa.Column("tags", TEXTS, server_default="{}", nullable=False),
        sa.Column("manifest", JSONB, nullable=False),
        sa.Column("storage_prefix", sa.Text(), nullable=False),
        _created_at(),
        sa.Column("deleted_at", TIME),
        sa.Column("swept_at", TIME),
        sa.UniqueConstraint("job_id", name="artifacts_one_per_job"),
    )
    _index_by_project("artifacts")
    op.create_index("artifacts_by_model", "artifacts", ["model_fingerprint", "protocol_hash"])
    op.create_index("artifacts_by_tag", "artifacts", ["tags"], postgresql_using="gin")
    to_sweep = sa.text("deleted_at IS NOT NULL AND swept_at IS NULL")
    op.create_index("artifacts_to_sweep", "artifacts", ["deleted_at"], postgresql_where=to_sweep)
    op.create_table(
        "models",
        _id(),
        _project(),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("config", JSONB, nullable=False),
        _created_at(),
        sa.Column("last_used_at", TIME, server_default=NOW, nullable=False),
        sa.UniqueConstraint("project_id", "uri", "revision", name="models_once"),
    )
    op.create_index("ix_models_fingerprint", "models", ["fingerprint"])
    op.create_table(
        "datasets",
        _id(),
        _project(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        _created_at(),
    )
    _index_by_project("datasets")
    op.create_table(
        "baselines",
        sa.Column("model_fingerprint", sa.Text(), primary_key=True),
        sa.Column("protocol_hash", sa.Text(), primary_key=True),
        sa.Column("dtype", sa.Text(), primary_key=True),
        sa.Column("device_kind", sa.Text(), primary_key=True),
        sa.Column("evaluation", JSONB, nullable=False),
        _created_at(),
    )


def _index_by_project(table: str) -> None:
    """The order of lists: newest first."""
    columns = ["project_id", sa.text("created_at DESC"), sa.text("id DESC")]
    op.create_index(f"{table}_by_project", table, columns)


def downgrade() -> None:
    for table in (
        "baselines",
        "datasets",
        "models",
        "artifacts",
        "job_events",
        "idempotency_keys",
        "jobs",
        "api_keys",
        "projects",
    ):
        op.drop_table(table)
