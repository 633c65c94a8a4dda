"""A person's override of an artifact's verdict: why, by which key, when.

The columns are empty for all that are there, and the release before this one does not know them: it may go on serving.
A key can give no scope that it lacks, so whoever may do all that there was before may do this too; otherwise nobody
could ever be given it. The release before ignores a scope that it does not know.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_SCOPE = "artifacts:override"
_EVERY_OTHER = (
    "ARRAY['jobs:read', 'jobs:write', 'artifacts:read', 'artifacts:write', 'datasets:read', 'datasets:write', "
    "'keys:admin']"
)


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("override_reason", sa.Text()))
    op.add_column("artifacts", sa.Column("overridden_by", sa.Text()))
    op.add_column("artifacts", sa.Column("overridden_at", sa.DateTime(timezone=True)))
    op.execute(
        f"UPDATE api_keys SET scopes = array_append(scopes, '{_SCOPE}') "  # noqa: S608  # constants of this file
        f"WHERE scopes @> {_EVERY_OTHER} AND NOT scopes @> ARRAY['{_SCOPE}']"
    )


def downgrade() -> None:
    op.execute(f"UPDATE api_keys SET scopes = array_remove(scopes, '{_SCOPE}')")  # noqa: S608  # a constant
    op.drop_column("artifacts", "overridden_at")
    op.drop_column("artifacts", "overridden_by")
    op.drop_column("artifacts", "override_reason")
