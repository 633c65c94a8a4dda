"""What a job's rehearsal made of its plan: a column that the release before this one neither reads nor writes."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("canary", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "canary")
