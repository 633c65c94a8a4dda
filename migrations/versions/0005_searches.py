"""Searches: a goal instead of a recipe, and the trials that are made for it.

The release before this one does not know them and may go on serving: nothing that it reads or writes has changed.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

UUID, TIME, NOW = sa.Uuid(), sa.DateTime(timezone=True), sa.func.now()
ONE = "idempotency_keys_stand_for_one"


def upgrade() -> None:
    op.create_table(
        "searches",
        sa.Column("id", UUID, primary_key=True),
        sa.Column("project_id", UUID, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("candidates", JSONB, nullable=False),
        sa.Column("ruled_out", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("chosen", sa.Integer()),
        sa.Column("explanation", sa.Text()),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("finished_at", TIME),
        sa.CheckConstraint(
            "state IN ('exploring', 'confirming', 'finished', 'cancelled')", name="searches_state_known"
        ),
        sa.CheckConstraint(
            "(state IN ('exploring', 'confirming')) = (finished_at IS NULL)", name="searches_finished_at_when_terminal"
        ),
    )
    op.create_index("searches_by_project", "searches", ["project_id", sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("searches_open", "searches", ["created_at"], postgresql_where=sa.text("finished_at IS NULL"))
    op.create_table(
        "trials",
        sa.Column("search_id", UUID, sa.ForeignKey("searches.id"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("rung", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=False),
        sa.Column("job_id", UUID, sa.ForeignKey("jobs.id")),
        sa.Column("figures", JSONB),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.UniqueConstraint("search_id", "rung", "candidate", name="trials_once"),
    )
    deferred = sa.ForeignKey("searches.id", deferrable=True, initially="DEFERRED")
    op.add_column("idempotency_keys", sa.Column("search_id", UUID, deferred))
    op.drop_constraint(ONE, "idempotency_keys", type_="check")
    op.create_check_constraint(ONE, "idempotency_keys", "num_nonnulls(job_id, sweep_id, search_id) = 1")


def downgrade() -> None:
    op.execute("DELETE FROM idempotency_keys WHERE search_id IS NOT NULL")
    op.drop_constraint(ONE, "idempotency_keys", type_="check")
    op.create_check_constraint(ONE, "idempotency_keys", "num_nonnulls(job_id, sweep_id) = 1")
    op.drop_column("idempotency_keys", "search_id")
    op.drop_table("trials")
    op.drop_table("searches")
