"""Aliases: names that point at artifacts and can be moved, their moves, and the scope to promote.

Tables of their own, which the release before this one does not know: it may go on serving, and can still delete an
artifact that an alias points at. A key that could do everything may promote as well.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_SCOPE = "artifacts:promote"
_EVERY_OTHER = (
    "ARRAY['jobs:read', 'jobs:write', 'artifacts:read', 'artifacts:write', 'artifacts:override', 'datasets:read', "
    "'datasets:write', 'keys:admin']"
)


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("project_id", sa.Uuid(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("artifact_id", sa.Uuid(), sa.ForeignKey("artifacts.id"), nullable=False),
        sa.Column("protected", sa.Boolean(), nullable=False, server_default="false"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("project_id", "name", name="aliases_once"),
    )
    op.create_index("aliases_by_artifact", "aliases", ["artifact_id"])
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("project_id", sa.Uuid(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("from_id", sa.Uuid(), sa.ForeignKey("artifacts.id")),
        sa.Column("to_id", sa.Uuid(), sa.ForeignKey("artifacts.id")),
        sa.Column("protected", sa.Boolean(), nullable=False),
        sa.Column("key_name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("alias_moves_by_alias", "alias_moves", ["project_id", "alias", sa.text("id DESC")])
    op.execute(
        f"UPDATE api_keys SET scopes = array_append(scopes, '{_SCOPE}') "  # noqa: S608  # constants of this file
        f"WHERE scopes @> {_EVERY_OTHER} AND NOT scopes @> ARRAY['{_SCOPE}']"
    )


def downgrade() -> None:
    op.execute(f"UPDATE api_keys SET scopes = array_remove(scopes, '{_SCOPE}')")  # noqa: S608  # a constant
    op.drop_table("alias_moves")
    op.drop_table("aliases")
