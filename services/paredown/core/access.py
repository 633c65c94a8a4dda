"""Projects, and the API keys that speak for them. A key is stored as its HMAC only."""

import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import Select, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.orm import Session

from paredown.contracts.access import KeyView, Scope
from paredown.core.db import database_now
from paredown.core.errors import NotFound, RequestInvalid, SettingsInvalid, Unauthenticated
from paredown.core.settings import Settings
from paredown.core.storable import check_storable, check_time
from paredown.core.tables import ApiKeyRow, ProjectRow

MIN_SECRET_LENGTH = 32
# last_used_at is written at most this often, so that a busy key is not a busy row.
_USED_EVERY = timedelta(minutes=1)
# Any number; held by the transaction that makes the very first key.
_BOOTSTRAP_LOCK = 0x70617266


@dataclass(frozen=True)
class Principal:
    """Whom a key speaks for, and what it may do."""

    project_id: UUID
    project: str
    key_id: UUID
    key_name: str
    scopes: tuple[Scope, ...]


def create_project(session: Session, name: str) -> UUID:
    """The project of this name, made if there is none."""
    check_storable(name, "name")
    new = postgresql_insert(ProjectRow).values(id=uuid4(), name=name)
    session.execute(new.on_conflict_do_nothing(index_elements=[ProjectRow.name]))
    return session.execute(select(ProjectRow.id).where(ProjectRow.name == name)).scalar_one()


def create_key(
    session: Session,
    project_id: UUID,
    name: str,
    scopes: Collection[Scope],
    expires_at: datetime | None,
    settings: Settings,
) -> tuple[KeyView, str]:
    """A new key and its secret, `pare_<prefix>_<random>`, which is never seen again. Raises RequestInvalid."""
    check_storable(name, "name")
    check_time(expires_at, "expires_at")
    if expires_at and expires_at <= database_now(session):
        raise RequestInvalid("expires_at lies in the past.", field="expires_at")
    prefix = f"pare_{secrets.token_hex(4)}"
    secret = f"{prefix}_{secrets.token_urlsafe(32)}"
    key_id = uuid4()
    session.execute(
        insert(ApiKeyRow).values(
            id=key_id,
            project_id=project_id,
            name=name,
            prefix=prefix,
            digest=_digest(secret, settings),
            # In the order of the enumeration, each once.
            scopes=[scope.value for scope in Scope if scope in scopes],
            expires_at=expires_at,
        )
    )
    return _view(*session.execute(_select_keys().where(ApiKeyRow.id == key_id)).one()), secret


def authenticate(session: Session, secret: str, settings: Settings) -> Principal:
    """Whom this secret speaks for. Raises Unauthenticated, without a word on what is wrong with it."""
    usable = (
        ApiKeyRow.digest == _digest(secret, settings),
        ApiKeyRow.revoked_at.is_(None),
        or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()),
    )
    found = session.execute(_select_keys().where(*usable)).one_or_none()
    if found is None:
        raise Unauthenticated("This API key is not known, or it is revoked or expired.")
    key, project = found
    # A row that another request is just writing is left alone: no request waits for this.
    stale = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < func.now() - _USED_EVERY)
    idle = select(ApiKeyRow.id).where(ApiKeyRow.id == key.id, stale).with_for_update(skip_locked=True)
    session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.id.in_(idle))
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )
    return Principal(key.project_id, project, key.id, key.name, _scopes(key))


def list_keys(session: Session, project_id: UUID) -> list[KeyView]:
    """The project's keys, newest first; revoked ones too."""
    query = _select_keys().where(ApiKeyRow.project_id == project_id)
    return [_view(*row) for row in session.execute(query.order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id))]


def revoke_key(session: Session, project_id: UUID, key_id: UUID) -> KeyView:
    """Refuse this key from now on; one that is revoked already stays as it is. Raises NotFound."""
    of_project = (ApiKeyRow.id == key_id, ApiKeyRow.project_id == project_id)
    session.execute(
        update(ApiKeyRow)
        .where(*of_project, ApiKeyRow.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .execution_options(synchronize_session=False)
    )
    query = _select_keys().where(*of_project).execution_options(populate_existing=True)
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"There is no key {key_id}.")
    return _view(*found)


def bootstrap(session: Session, settings: Settings, project: str = "default") -> str | None:
    """The secret of the first key, with all scopes; None when any key exists. Safe to call from two processes."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BOOTSTRAP_LOCK})
    if session.scalar(select(ApiKeyRow.id).limit(1)) is not None:
        return None
    project_id = create_project(session, project)
    return create_key(session, project_id, "first key", tuple(Scope), None, settings)[1]


def _digest(secret: str, settings: Settings) -> bytes:
    key = settings.secret.get_secret_value()
    if len(key) < MIN_SECRET_LENGTH:
        raise SettingsInvalid(f"PARE_SECRET has {len(key)} characters; it needs at least {MIN_SECRET_LENGTH}.")
    return hmac.digest(key.encode(), secret.encode("utf-8", "replace"), "sha256")


def _scopes(key: ApiKeyRow) -> tuple[Scope, ...]:
    """A scope that this release does not know gives nothing: a later release may have stored it."""
    return tuple(scope for scope in Scope if scope in key.scopes)


def _select_keys() -> Select[ApiKeyRow, str]:
    return select(ApiKeyRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)


def _view(key: ApiKeyRow, project: str) -> KeyView:
    return KeyView(
        id=key.id,
        project=project,
        name=key.name,
        prefix=key.prefix,
        scopes=_scopes(key),
        created_at=key.created_at,
        last_used_at=key.last_used_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
    )
