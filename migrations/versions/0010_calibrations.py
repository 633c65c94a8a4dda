"""Token blocks that jobs calibrated on: a table that the release before this one neither reads nor writes."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "calibrations",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("project_id", sa.Uuid(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("job_id", sa.Uuid(), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("tokens_sha256", sa.Text(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("sequence_length", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_sha256", sa.Text(), nullable=False),
        sa.Column("tokenizer_sha256", sa.Text(), nullable=False),
        sa.Column("chat_template_sha256", sa.Text(), nullable=True),
        sa.Column("held_out_windows", sa.Integer(), nullable=True),
        sa.Column("coverage", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_fingerprint", sa.Text(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("vocab_size", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_sha256", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
    )
    op.create_index(
        "calibrations_once",
        "calibrations",
        ["project_id", "tokens_sha256", "sequence_length", "tokenizer_sha256"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    newest = [sa.text("created_at DESC"), sa.text("id DESC")]
    op.create_index("calibrations_by_project", "calibrations", ["project_id", *newest])
    op.create_index("calibrations_by_model", "calibrations", ["project_id", "model_fingerprint"])


def downgrade() -> None:
    op.drop_table("calibrations")
