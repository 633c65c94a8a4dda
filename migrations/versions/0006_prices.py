"""The price book: what instance types cost, project by project.

A table of its own, which the release before this one does not know: it may go on serving.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "instance_prices",
        sa.Column("project_id", sa.Uuid(), sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("price_per_hour", sa.Float(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("as_of", sa.Date(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("instance_prices")
