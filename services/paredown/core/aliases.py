"""Aliases of artifacts: set, moved, protected, removed, each with a line of history.

An alias points at an artifact of its own project: another project could take its own away at any time. Setting one
locks the artifact before the alias, and deleting an artifact locks it before it looks for aliases, so that no alias is
left pointing at nothing.
"""

from uuid import UUID

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.orm import Session

from paredown.contracts.access import Scope
from paredown.contracts.alias import SIGN, AliasDetails, AliasMove, AliasRequest, AliasView
from paredown.contracts.artifact import ArtifactView
from paredown.contracts.gate import TERMS
from paredown.contracts.job import content_hash
from paredown.contracts.report import Verdict
from paredown.core import catalogue
from paredown.core.access import Principal
from paredown.core.errors import AliasProtected, Forbidden, NotFound, PreconditionFailed, RequestInvalid, SourceNotFound
from paredown.core.etags import matches
from paredown.core.paging import Place, encode_cursor, page
from paredown.core.storable import check_storable
from paredown.core.tables import AliasMoveRow, AliasRow, ArtifactRow, ProjectRow

_SHOWN_MOVES = 100
_SCHEME = f"artifact://{SIGN}"


def put(
    session: Session, caller: Principal, name: str, wanted: AliasRequest, if_match: str | None = None
) -> AliasDetails:
    """Make the alias, or move it. Asking for what is there already changes nothing and leaves no line of history.

    Raises PreconditionFailed, RequestInvalid for an artifact that it cannot point at, Forbidden without the scope to
    promote, AliasProtected.
    """
    check_storable(wanted.reason, "reason")
    artifact = _target(session, caller.project_id, wanted.artifact_id)
    made, row = _locked(session, caller.project_id, name, artifact.id)
    if if_match is not None and (made or not matches(if_match, etag(get(session, caller.project_id, name)))):
        raise PreconditionFailed("The alias was moved meanwhile; read it again.", field="If-Match")
    protected = row.protected if wanted.protected is None else wanted.protected
    if not made and (row.artifact_id, row.protected) == (artifact.id, protected):
        return get(session, caller.project_id, name)
    if protected or row.protected:
        _require_promote(caller, name)
    if protected:
        _check_verdict(session, name, artifact)
    changed = update(AliasRow).where(AliasRow.project_id == caller.project_id, AliasRow.name == name)
    changed = changed.values(artifact_id=artifact.id, protected=protected, moved_at=func.now())
    _record(session, caller, name, None if made else row.artifact_id, artifact.id, protected, wanted.reason)
    session.execute(changed.execution_options(synchronize_session=False))
    return get(session, caller.project_id, name)


def remove(session: Session, caller: Principal, name: str, if_match: str | None = None) -> None:
    """The artifact and the history stay. Raises NotFound, PreconditionFailed, or Forbidden."""
    owned = (AliasRow.project_id == caller.project_id, AliasRow.name == name)
    row = session.scalar(select(AliasRow).where(*owned).with_for_update())
    if row is None:
        raise _no_alias(name)
    if if_match is not None and not matches(if_match, etag(get(session, caller.project_id, name))):
        raise PreconditionFailed("The alias was moved meanwhile; read it again.", field="If-Match")
    if row.protected:
        _require_promote(caller, name)
    _record(session, caller, name, row.artifact_id, None, row.protected, None)
    session.execute(delete(AliasRow).where(*owned).execution_options(synchronize_session=False))


def get(session: Session, project_id: UUID, name: str) -> AliasDetails:
    """Raises NotFound."""
    query = _select().where(AliasRow.project_id == project_id, AliasRow.name == name)
    found = session.execute(query.execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise _no_alias(name)
    summary = _view(*found)
    moves = (
        select(AliasMoveRow)
        .where(AliasMoveRow.project_id == project_id, AliasMoveRow.alias == name)
        .order_by(AliasMoveRow.id.desc())
        .limit(_SHOWN_MOVES)
    )
    return AliasDetails(**dict(summary), moves=tuple(_move(row) for row in session.scalars(moves)))


def list_aliases(
    session: Session, project_id: UUID, *, after: str | None, limit: int
) -> tuple[list[AliasView], str | None]:
    """A page of the project's aliases, the one made last first. Raises RequestInvalid."""
    query = _select().where(AliasRow.project_id == project_id)
    rows, has_more = page(session, query, AliasRow.created_at, AliasRow.id, after=after, limit=limit)
    views = [_view(*row) for row in rows]
    return views, encode_cursor(Place(views[-1].created_at, rows[-1][0].id)) if has_more else None


def resolved(session: Session, project_id: UUID, uri: str) -> str:
    """artifact://@NAME as artifact://ID of what it points at now; any other address as it is. Raises SourceNotFound."""
    if not uri.startswith(_SCHEME):
        return uri
    name = uri.removeprefix(_SCHEME)
    query = select(AliasRow.artifact_id).where(AliasRow.project_id == project_id, AliasRow.name == name)
    found = session.scalar(query)
    if found is None:
        raise SourceNotFound(f"{uri} names an alias that this project does not have.", field="model")
    return f"artifact://{found}"


def etag(alias: AliasView) -> str:
    """A strong ETag of where the alias points, with what it shows of that artifact."""
    shown = AliasView.model_validate({name: getattr(alias, name) for name in AliasView.model_fields})
    return f'"{content_hash(shown.model_dump(mode="json"))[:32]}"'


def _target(session: Session, project_id: UUID, artifact_id: UUID) -> ArtifactView:
    """The artifact, locked."""
    try:
        catalogue.lock_own(session, project_id, artifact_id)
    except NotFound as error:
        # 404 would say that the address of this request is wrong.
        raise RequestInvalid(error.detail, field="artifact_id") from error
    except Forbidden as error:
        raise RequestInvalid(
            "An alias points at an artifact of its own project; this one belongs to another, which could take it away.",
            field="artifact_id",
        ) from error
    return catalogue.get_artifact(session, project_id, artifact_id)


def _locked(session: Session, project_id: UUID, name: str, artifact_id: UUID) -> tuple[bool, AliasRow]:
    """Whether the alias was made just now, and its row; a concurrent request with the same name is waited for."""
    owned = select(AliasRow).where(AliasRow.project_id == project_id, AliasRow.name == name)
    new = postgresql_insert(AliasRow).values(project_id=project_id, name=name, artifact_id=artifact_id)
    while True:
        made = session.scalar(new.on_conflict_do_nothing().returning(AliasRow.name)) is not None
        row = session.scalar(owned.with_for_update().execution_options(populate_existing=True))
        # None where it was removed between the two.
        if row is not None:
            return made, row


def _require_promote(caller: Principal, name: str) -> None:
    if Scope.ARTIFACTS_PROMOTE not in caller.scopes:
        raise Forbidden(
            f"The alias {name} is protected, or would be; moving, protecting, unprotecting or removing it needs a key "
            f"with the scope {Scope.ARTIFACTS_PROMOTE}."
        )


def _check_verdict(session: Session, name: str, artifact: ArtifactView) -> None:
    if artifact.verdict in (Verdict.PASSED, Verdict.OVERRIDDEN):
        return
    rule = f"The alias {name} is protected and takes only artifacts that met their budget or were overridden"
    if artifact.verdict is None:
        raise AliasProtected(
            f"{rule}; {artifact.name} had no budget. Submit its job again with one, and take the artifact of that.",
            field="artifact_id",
        )
    gate = catalogue.manifest(session, None, artifact.id).report.gate
    missed = ", ".join(TERMS[check.figure].title.lower() for check in gate.checks if not check.passed) if gate else ""
    raise AliasProtected(
        f"{rule}; {artifact.name} missed {missed or 'its budget'}. Choose another, or override its verdict.",
        field="artifact_id",
    )


def _record(
    session: Session,
    caller: Principal,
    name: str,
    from_id: UUID | None,
    to_id: UUID | None,
    protected: bool,
    reason: str | None,
) -> None:
    session.execute(
        insert(AliasMoveRow).values(
            project_id=caller.project_id,
            alias=name,
            from_id=from_id,
            to_id=to_id,
            protected=protected,
            key_name=caller.key_name,
            reason=reason,
        )
    )


def _no_alias(name: str) -> NotFound:
    return NotFound(f"There is no alias {name}.")


def _select() -> Select[AliasRow, str, str, str | None]:
    """With an artifact that was deleted as well: the release before this one could."""
    return (
        select(AliasRow, ProjectRow.name, ArtifactRow.name, ArtifactRow.verdict)
        .join(ProjectRow, ProjectRow.id == AliasRow.project_id)
        .join(ArtifactRow, ArtifactRow.id == AliasRow.artifact_id)
    )


def _view(row: AliasRow, project: str, artifact_name: str, verdict: str | None) -> AliasView:
    return AliasView(
        name=row.name,
        project=project,
        artifact_id=row.artifact_id,
        artifact_name=artifact_name,
        verdict=Verdict(verdict) if verdict else None,
        protected=row.protected,
        created_at=row.created_at,
        moved_at=row.moved_at,
    )


def _move(row: AliasMoveRow) -> AliasMove:
    return AliasMove(
        from_id=row.from_id,
        to_id=row.to_id,
        protected=row.protected,
        key_name=row.key_name,
        reason=row.reason,
        at=row.at,
    )
