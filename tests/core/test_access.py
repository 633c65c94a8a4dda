"""Keys: the secret is seen once, the database cannot give it back, and a key does what its scopes say until it ends."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from paredown.contracts.access import Scope
from paredown.core import access
from paredown.core.db import Database
from paredown.core.errors import NotFound, RequestInvalid, SettingsInvalid, Unauthenticated
from paredown.core.settings import Settings
from paredown.core.tables import ApiKeyRow


def make_key(
    database: Database, project: UUID, settings: Settings, expires_at: datetime | None = None
) -> tuple[UUID, str]:
    with database.transaction() as session:
        view, secret = access.create_key(
            session, project, "ci", [Scope.JOBS_WRITE, Scope.JOBS_READ, Scope.JOBS_READ], expires_at, settings
        )
    return view.id, secret


def authenticate(database: Database, secret: str, settings: Settings) -> access.Principal:
    with database.transaction() as session:
        return access.authenticate(session, secret, settings)


def test_key_speaks_for_its_project(database: Database, project: UUID, settings: Settings) -> None:
    key_id, secret = make_key(database, project, settings)
    principal = authenticate(database, secret, settings)
    assert (principal.project_id, principal.project) == (project, "default")
    assert (principal.key_id, principal.key_name) == (key_id, "ci")
    assert principal.scopes == (Scope.JOBS_READ, Scope.JOBS_WRITE)


def test_secret_is_stored_nowhere(database: Database, project: UUID, settings: Settings) -> None:
    key_id, secret = make_key(database, project, settings)
    assert secret.startswith("pare_")
    with database.transaction() as session:
        row = session.get_one(ApiKeyRow, key_id)
        view = access.list_keys(session, project)[0]
        assert secret.encode() not in row.digest
        assert len(row.digest) == 32
        random_part = secret.removeprefix(f"{row.prefix}_")
        assert len(random_part) >= 40
        for value in (row.name, row.prefix, *row.scopes, view.model_dump_json()):
            assert random_part not in value


def test_key_is_worth_nothing_under_another_secret_of_the_service(
    database: Database, project: UUID, settings: Settings
) -> None:
    _, secret = make_key(database, project, settings)
    stranger = Settings(database_url=settings.database_url, secret="another secret of at least 32 characters")
    with pytest.raises(Unauthenticated):
        authenticate(database, secret, stranger)


@pytest.mark.parametrize("secret", ["", "pare_00000000_x", "\0", "\ud800", "é" * 500])
def test_unknown_secret_is_refused(database: Database, project: UUID, settings: Settings, secret: str) -> None:
    make_key(database, project, settings)
    with pytest.raises(Unauthenticated):
        authenticate(database, secret, settings)


def test_short_secret_of_the_service_is_refused(database: Database, project: UUID, settings: Settings) -> None:
    careless = Settings(database_url=settings.database_url, secret="short")
    for call in (lambda: make_key(database, project, careless), lambda: authenticate(database, "x", careless)):
        with pytest.raises(SettingsInvalid):
            call()


def test_revoked_key_is_refused_at_once(database: Database, project: UUID, settings: Settings) -> None:
    key_id, secret = make_key(database, project, settings)
    _, other_secret = make_key(database, project, settings)
    with database.transaction() as session:
        first = access.revoke_key(session, project, key_id).revoked_at
    with database.transaction() as session:
        assert access.revoke_key(session, project, key_id).revoked_at == first is not None
    with pytest.raises(Unauthenticated):
        authenticate(database, secret, settings)
    authenticate(database, other_secret, settings)


def test_expired_key_is_refused(database: Database, project: UUID, settings: Settings) -> None:
    key_id, secret = make_key(database, project, settings, datetime.now(UTC) + timedelta(hours=1))
    authenticate(database, secret, settings)
    with database.transaction() as session:
        past = func.now() - timedelta(seconds=1)
        session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(expires_at=past))
    with pytest.raises(Unauthenticated):
        authenticate(database, secret, settings)
    with pytest.raises(RequestInvalid):
        make_key(database, project, settings, datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(RequestInvalid):
        make_key(database, project, settings, datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))))


def test_foreign_keys_do_not_exist(database: Database, project: UUID, settings: Settings) -> None:
    key_id, secret = make_key(database, project, settings)
    with database.transaction() as session:
        other = access.create_project(session, "other")
        assert access.list_keys(session, other) == []
        with pytest.raises(NotFound):
            access.revoke_key(session, other, key_id)
        with pytest.raises(NotFound):
            access.revoke_key(session, project, uuid4())
    authenticate(database, secret, settings)


def test_last_use_is_written_once_a_minute_and_waits_for_nobody(
    database: Database, project: UUID, settings: Settings
) -> None:
    key_id, secret = make_key(database, project, settings)

    def last_used() -> datetime | None:
        with database.transaction() as session:
            return session.scalar(select(ApiKeyRow.last_used_at).where(ApiKeyRow.id == key_id))

    with database.transaction() as session:
        session.execute(select(ApiKeyRow).where(ApiKeyRow.id == key_id).with_for_update())
        authenticate(database, secret, settings)
    assert last_used() is None
    authenticate(database, secret, settings)
    first = last_used()
    assert first is not None
    authenticate(database, secret, settings)
    assert last_used() == first
    with database.transaction() as session:
        earlier = func.now() - timedelta(minutes=2)
        session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(last_used_at=earlier))
    authenticate(database, secret, settings)
    again = last_used()
    assert again is not None
    assert again > first


def test_scope_of_a_later_release_gives_nothing(database: Database, project: UUID, settings: Settings) -> None:
    key_id, secret = make_key(database, project, settings)
    with database.transaction() as session:
        session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(scopes=["jobs:read", "jobs:dream"]))
    assert authenticate(database, secret, settings).scopes == (Scope.JOBS_READ,)
    with database.transaction() as session:
        assert access.list_keys(session, project)[0].scopes == (Scope.JOBS_READ,)


def test_project_of_a_name_is_one(database: Database, project: UUID) -> None:
    with database.transaction() as session:
        assert access.create_project(session, "default") == project
        assert access.create_project(session, "other") != project
        with pytest.raises(RequestInvalid):
            access.create_project(session, "\0")


def test_first_key_is_given_once(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        secret = access.bootstrap(session, settings)
    assert secret is not None
    principal = authenticate(database, secret, settings)
    assert (principal.project, principal.scopes) == ("default", tuple(Scope))
    with database.transaction() as session:
        access.revoke_key(session, principal.project_id, principal.key_id)
        # Not even when that key is revoked: who has the database's rights makes a new one.
        assert access.bootstrap(session, settings) is None
