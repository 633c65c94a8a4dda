"""Sweeps: many recipes over one model.

The release before this one does not know them and may go on serving: the new columns are empty for all that it writes.
It gives out a job that waits for another one earlier than need be, which costs a measurement and nothing else.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

UUID, TIME, NOW = sa.Uuid(), sa.DateTime(timezone=True), sa.func.now()


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", UUID, primary_key=True),
        sa.Column("project_id", UUID, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("reused", JSONB, server_default="{}", nullable=False),
        sa.Column("cancelled_at", TIME),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
    )
    op.create_index("sweeps_by_project", "sweeps", ["project_id", sa.text("created_at DESC"), sa.text("id DESC")])
    op.add_column("jobs", sa.Column("sweep_id", UUID, sa.ForeignKey("sweeps.id")))
    op.add_column("jobs", sa.Column("sweep_position", sa.Integer()))
    op.add_column("jobs", sa.Column("after_id", UUID, sa.ForeignKey("jobs.id")))
    in_sweep = sa.text("sweep_id IS NOT NULL")
    op.create_index("jobs_by_sweep", "jobs", ["sweep_id", "sweep_position"], postgresql_where=in_sweep)
    deferred = sa.ForeignKey("sweeps.id", deferrable=True, initially="DEFERRED")
    op.add_column("idempotency_keys", sa.Column("sweep_id", UUID, deferred))
    op.alter_column("idempotency_keys", "job_id", nullable=True)
    op.create_check_constraint(
        "idempotency_keys_stand_for_one", "idempotency_keys", "num_nonnulls(job_id, sweep_id) = 1"
    )


def downgrade() -> None:
    op.drop_constraint("idempotency_keys_stand_for_one", "idempotency_keys", type_="check")
    op.execute("DELETE FROM idempotency_keys WHERE job_id IS NULL")
    op.alter_column("idempotency_keys", "job_id", nullable=False)
    op.drop_column("idempotency_keys", "sweep_id")
    op.drop_index("jobs_by_sweep", "jobs")
    op.drop_column("jobs", "after_id")
    op.drop_column("jobs", "sweep_position")
    op.drop_column("jobs", "sweep_id")
    op.drop_table("sweeps")
