"""Aliases: names of a project that point at its artifacts and can be moved. A protected one takes no missed budget."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from paredown.contracts.job import Contract
from paredown.contracts.report import Verdict

# Every part begins with a letter or digit, so that no name is ".." or holds an empty part: it stands in addresses.
AliasName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
    ),
]
# What a person writes in the place of an artifact's id.
SIGN = "@"


class AliasRequest(Contract):
    """Where an alias shall point. What is left out or null stays as it is."""

    artifact_id: UUID = Field(description="An artifact of the same project.")
    protected: bool | None = Field(
        None, description="Whether it takes only artifacts whose verdict is passed or overridden; a new one is not."
    )
    reason: Annotated[str, StringConstraints(strip_whitespace=True)] | None = Field(
        None, min_length=1, max_length=2000, description="Why; it stays with the move."
    )


class AliasMove(Contract):
    """One line of an alias's history; it outlives the alias."""

    from_id: UUID | None = Field(description="None where the alias was new.")
    to_id: UUID | None = Field(description="None where it was removed.")
    protected: bool = Field(description="Whether it was protected from then on.")
    key_name: str = Field(description="Name of the key that moved it.")
    reason: str | None
    at: datetime


class AliasView(Contract):
    """An alias as lists show it, with the artifact that it points at."""

    name: AliasName
    project: str
    artifact_id: UUID
    artifact_name: str
    verdict: Verdict | None = Field(description="Of the artifact.")
    protected: bool
    created_at: datetime
    moved_at: datetime


class AliasDetails(AliasView):
    """An alias with where it pointed before."""

    moves: tuple[AliasMove, ...] = Field(description="The latest hundred, newest first.")
