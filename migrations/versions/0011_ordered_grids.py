"""A sweep's specification keeps the order of its keys: a grid numbers its combinations by it, and jsonb sorts keys.

The release before this one reads and writes the column as it did: PostgreSQL turns its jsonb into json.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.alter_column("sweeps", "spec", type_=sa.JSON(), postgresql_using="spec::json")


def downgrade() -> None:
    op.alter_column("sweeps", "spec", type_=postgresql.JSONB(), postgresql_using="spec::jsonb")
