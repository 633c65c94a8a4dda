"""Artifacts that were made of other artifacts.

The column is empty for all that are there, and the release before this one does not know it: it may go on serving.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("parent_id", sa.Uuid(), sa.ForeignKey("artifacts.id")))
    op.create_index(
        "artifacts_by_parent", "artifacts", ["parent_id"], postgresql_where=sa.text("parent_id IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_column("artifacts", "parent_id")
