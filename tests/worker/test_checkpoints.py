"""Checkpoints between epochs: on the same disk, and through the store."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from paredown.core.settings import Settings
from paredown.core.storage import LocalStore
from paredown.worker.checkpoints import CheckpointUploader, restore, take_snapshot
from paredown.worker.workspace import Workspace

JOB = uuid4()


def nothing() -> None:
    """Nobody asks for a stop."""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[..., Workspace]:
    def make(epoch: int, machine: str = "a", job: UUID = JOB) -> Workspace:
        space = Workspace(Settings(work_dir=tmp_path / machine), job, epoch)
        space.create()
        return space

    return make


def write(workspace: Workspace, name: str, data: bytes) -> None:
    workspace.checkpoint.mkdir(exist_ok=True)
    partial = workspace.checkpoint / f"{name}.partial"
    partial.write_bytes(data)
    partial.rename(workspace.checkpoint / name)


def content(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workspace.checkpoint.iterdir()}


Make = Callable[..., Workspace]


def test_the_next_epoch_on_the_same_machine_links_what_is_finished(store: LocalStore, workspace: Make) -> None:
    first, second = workspace(1), workspace(2)
    write(first, "block-0", b"zero")
    (first.checkpoint / "block-1.partial").write_bytes(b"ha")
    assert restore(store, JOB, second, nothing) == 1
    assert content(second) == {"block-0": b"zero"}
    # Nothing that the old engine still does reaches the new directory.
    write(first, "block-0", b"other")
    (first.checkpoint / "block-1.partial").rename(first.checkpoint / "block-1")
    assert content(second) == {"block-0": b"zero"}


def test_another_machine_takes_it_from_the_store(store: LocalStore, workspace: Make) -> None:
    first = workspace(1)
    write(first, "block-0", b"zero")
    write(first, "journal.json", b"{}")
    CheckpointUploader(store, JOB, first, 600).upload_now(nothing)
    second = workspace(2, machine="b")
    assert restore(store, JOB, second, nothing) == 1
    assert content(second) == {"block-0": b"zero", "journal.json": b"{}"}


def test_the_newest_epoch_wins_wherever_it_lies(store: LocalStore, workspace: Make) -> None:
    first = workspace(1)
    write(first, "block-0", b"old")
    second = workspace(2, machine="b")
    write(second, "block-0", b"new")
    CheckpointUploader(store, JOB, second, 600).upload_now(nothing)
    third = workspace(3)
    assert restore(store, JOB, third, nothing) == 2
    assert content(third) == {"block-0": b"new"}


def test_an_epoch_that_died_while_it_took_a_checkpoint_over_is_passed_by(store: LocalStore, workspace: Make) -> None:
    first = workspace(1)
    write(first, "block-0", b"zero")
    write(first, "block-1", b"one")
    second = workspace(2)
    second.arriving.mkdir()
    (second.arriving / "block-0").write_bytes(b"zero")
    third = workspace(3)
    assert restore(store, JOB, third, nothing) == 1
    assert content(third) == {"block-0": b"zero", "block-1": b"one"}


def test_without_a_checkpoint_there_is_none(store: LocalStore, workspace: Make) -> None:
    workspace(1)
    assert restore(store, JOB, workspace(2), nothing) is None


def test_a_second_upload_sends_what_is_new_and_forgets_what_is_gone(
    store: LocalStore, workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    put_file = store.put_file
    monkeypatch.setattr(
        store, "put_file", lambda key, path, sha256: (sent.append(path.name), put_file(key, path, sha256))
    )
    first = workspace(1)
    uploader = CheckpointUploader(store, JOB, first, 600)
    write(first, "block-0", b"zero")
    write(first, "hidden", b"after 0")
    uploader.upload_now(nothing)
    write(first, "block-1", b"one")
    write(first, "hidden", b"after 1")
    uploader.upload_now(nothing)
    assert sorted(sent) == ["block-0", "block-1", "hidden", "hidden"]
    # Three files and their index: the hidden states of before are gone.
    assert len(list(store.list(f"checkpoints/{JOB}/1/"))) == 4
    second = workspace(2, machine="b")
    restore(store, JOB, second, nothing)
    assert content(second) == {"block-0": b"zero", "block-1": b"one", "hidden": b"after 1"}


def test_an_upload_that_breaks_off_leaves_the_last_one_whole(
    store: LocalStore, workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workspace(1)
    uploader = CheckpointUploader(store, JOB, first, 600)
    write(first, "hidden", b"after 0")
    uploader.upload_now(nothing)
    write(first, "hidden", b"after 1")

    def breaks(key: str, data: bytes) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_bytes", breaks)
        with pytest.raises(InterruptedError):
            uploader.upload_now(nothing)
    second = workspace(2, machine="b")
    assert restore(store, JOB, second, nothing) == 1
    assert content(second) == {"hidden": b"after 0"}


def test_a_store_that_lost_a_file_gives_way_to_what_lies_here(store: LocalStore, workspace: Make) -> None:
    first = workspace(1)
    write(first, "block-0", b"local")
    second = workspace(2, machine="b")
    write(second, "block-0", b"stored")
    CheckpointUploader(store, JOB, second, 600).upload_now(nothing)
    for item in store.list(f"checkpoints/{JOB}/2/"):
        if not item.key.endswith("index.json"):
            store.delete(item.key)
    third = workspace(3)
    assert restore(store, JOB, third, nothing) == 1
    assert content(third) == {"block-0": b"local"}


def test_a_snapshot_is_of_one_moment_though_files_are_being_replaced(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_bytes(name.encode())
    take_snapshot(source, tmp_path / "snapshot")
    (source / "new").write_bytes(b"b2")
    (source / "new").replace(source / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()} == {
        "a": b"a",
        "b": b"b",
        "c": b"c",
    }
