"""The cache that all processes of a machine share: concurrent fetchers, room made first, nothing in use evicted."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.models import random_llama
from tests.support.sources import contents, fetch, source_settings

from paredown.contracts.artifact import sha256_file
from paredown.core.errors import DiskFull, PlanExceeded, StorageUnavailable
from paredown.core.settings import Settings
from paredown.core.sources import FetchCancelled, fetch_model
from paredown.core.sources.cache import Cache

USUAL = shutil.disk_usage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("cache") / "tiny")


def variant(tiny: Path, directory: Path, number: int) -> str:
    """The same model with another byte, so with another fingerprint; returns its address."""
    shutil.copytree(tiny, directory / f"model-{number}")
    weights = bytearray((tiny / "model.safetensors").read_bytes())
    weights[-1] ^= number
    (directory / f"model-{number}" / "model.safetensors").write_bytes(weights)
    return f"file://{directory}/model-{number}"


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def models_in(settings: Settings) -> set[str]:
    return {entry.name for entry in (settings.cache_dir / "models").iterdir()}


def test_progress_reaches_the_whole_and_a_hit_says_so_at_once(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    total = sum(path.stat().st_size for path in tiny.iterdir())
    heard: list[tuple[int, int]] = []

    def get() -> None:
        fetch_model(f"file://{tiny}", settings, progress=lambda *now: heard.append(now), cancelled=lambda: False)

    get()
    assert heard == sorted(heard)
    assert heard[-1] == (total, total)
    heard.clear()
    get()
    assert heard == [(total, total)]


def test_files_of_the_cache_are_read_only(tiny: Path, tmp_path: Path) -> None:
    model = fetch(f"file://{tiny}", source_settings(tmp_path, file_roots=[tiny]))
    assert {path.stat().st_mode & 0o777 for path in model.directory.iterdir()} == {0o444}


def test_many_fetchers_of_one_model_download_it_once(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    downloads: list[int] = []

    def get(number: int) -> Path:
        first = [True]

        def progress(done: int, total: int) -> None:
            if first[0] and done < total:
                downloads.append(number)
            first[0] = False

        return fetch_model(f"file://{tiny}", settings, progress=progress, cancelled=lambda: False).directory

    with ThreadPoolExecutor(6) as pool:
        directories = set(pool.map(get, range(6)))
    assert len(directories) == 1
    assert len(downloads) == 1


def test_a_fetcher_that_waits_for_another_can_be_cancelled(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    inside, leave = threading.Event(), threading.Event()

    def dawdle(done: int, total: int) -> None:
        inside.set()
        leave.wait(20)

    slow = threading.Thread(
        target=lambda: fetch_model(f"file://{tiny}", settings, progress=dawdle, cancelled=lambda: False)
    )
    slow.start()
    try:
        assert inside.wait(20)
        with pytest.raises(FetchCancelled):
            fetch_model(f"file://{tiny}", settings, progress=lambda done, total: None, cancelled=lambda: True)
    finally:
        leave.set()
        slow.join()


FETCH_AND_DIE = """
import os, sys
from paredown.core.settings import Settings
from paredown.core.sources import fetch_model
settings = Settings.model_validate_json(sys.argv[2])
fetch_model(sys.argv[1], settings, progress=lambda done, total: os._exit(9) if done > 100_000 else None, cancelled=bool)
"""


def test_a_fetcher_killed_halfway_holds_no_one_up(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    chosen = settings.model_dump_json(include={"cache_dir", "file_roots"})
    process = subprocess.run([sys.executable, "-c", FETCH_AND_DIE, f"file://{tiny}", chosen], check=False)
    assert process.returncode == 9
    assert list((settings.cache_dir / "partial").iterdir())
    assert contents(fetch(f"file://{tiny}", settings).directory) == contents(tiny)
    assert not list((settings.cache_dir / "partial").iterdir())


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(tiny: Path, tmp_path: Path) -> None:
    one = size_of(tiny)
    settings = source_settings(tmp_path, cache_limit_bytes=int(3.5 * one))
    uris = [variant(tiny, tmp_path, number) for number in range(1, 6)]
    held = fetch(uris[0], settings)
    second, third = (fetch(uri, settings) for uri in uris[1:3])
    second.close()
    third.close()
    time.sleep(0.01)
    fetch(uris[1], settings).close()
    fetch(uris[3], settings).close()
    assert held.record.fingerprint in models_in(settings)
    assert second.record.fingerprint in models_in(settings)
    assert third.record.fingerprint not in models_in(settings)
    assert size_of(settings.cache_dir / "models") <= settings.cache_limit_bytes
    assert contents(held.directory) == contents(tmp_path / "model-1")
    held.close()
    fetch(uris[4], settings)
    assert held.record.fingerprint not in models_in(settings)


def test_a_model_is_held_until_its_object_is_gone(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, cache_limit_bytes=int(1.5 * size_of(tiny)))
    first = fetch(variant(tiny, tmp_path, 1), settings)
    fingerprint = first.record.fingerprint
    # Both in use at once: the limit gives way, not the model.
    second = fetch(variant(tiny, tmp_path, 2), settings)
    assert {fingerprint, second.record.fingerprint} == models_in(settings)
    del first
    fetch(variant(tiny, tmp_path, 3), settings)
    assert fingerprint not in models_in(settings)


def test_a_model_that_can_never_fit_is_refused_before_its_first_byte(tiny: Path, tmp_path: Path) -> None:
    uri = f"file://{tiny}"
    small = source_settings(tmp_path, file_roots=[tiny], cache_limit_bytes=1000)
    with pytest.raises(PlanExceeded, match="PARE_CACHE_LIMIT_BYTES"):
        fetch(uri, small)
    limited = source_settings(tmp_path, file_roots=[tiny], model_limit_bytes=1000)
    with pytest.raises(PlanExceeded, match="at most 1000"):
        fetch(uri, limited)


def test_a_disk_without_room_is_named_before_the_first_byte(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USUAL(path)._replace(free=1000))
    heard: list[int] = []
    with pytest.raises(DiskFull, match="free some space") as raised:
        fetch_model(
            f"file://{tiny}", settings, progress=lambda done, total: heard.append(done), cancelled=lambda: False
        )
    assert raised.value.retryable
    assert not heard


def test_a_disk_that_fills_up_on_the_way_is_named_and_the_download_resumes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])

    def full(done: int, total: int) -> None:
        if done > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull):
        fetch_model(f"file://{tiny}", settings, progress=full, cancelled=lambda: False)
    assert contents(fetch(f"file://{tiny}", settings).directory) == contents(tiny)


def test_downloads_under_way_keep_their_room(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    cache = Cache(settings)
    free = 64 * 2**20 + 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USUAL(path)._replace(free=free))
    with cache.exclusive("one"), cache.exclusive("two"):
        cache.reserve("one", 800)
        with pytest.raises(DiskFull, match="other downloads under way"):
            cache.reserve("two", 800)
        cache.reserve("two", 100)
    with cache.exclusive("two"):
        # The first is no longer under way, so nobody will write what it still lacked.
        cache.reserve("two", 800)


def test_a_damaged_entry_is_fetched_again(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    model = fetch(f"file://{tiny}", settings)
    weights = model.directory / "model.safetensors"
    good = sha256_file(weights)
    weights.chmod(0o644)
    with weights.open("r+b") as stream:
        stream.truncate(1000)
    model.close()
    again = fetch(f"file://{tiny}", settings)
    assert sha256_file(again.directory / "model.safetensors") == good


def test_forgotten_downloads_go_in_time(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, file_roots=[tiny])
    old, new = (settings.cache_dir / "partial" / name for name in ("old", "new"))
    for directory in (old, new):
        directory.mkdir(parents=True)
        (directory / "half").write_bytes(b"x")
    os.utime(old, (0, 0))
    fetch(f"file://{tiny}", settings)
    assert not old.exists()
    assert new.exists()


def test_texts_in_reach_of_a_job_are_never_evicted(tiny: Path, tmp_path: Path) -> None:
    settings = source_settings(tmp_path, cache_limit_bytes=int(1.01 * size_of(tiny)))
    cache = Cache(settings)
    fresh, stale = cache.put_text(b"fresh" * 10_000), cache.put_text(b"stale" * 10_000)
    os.utime(stale, (0, 0))
    fetch(variant(tiny, tmp_path, 1), settings)
    assert fresh.exists()
    assert not stale.exists()


def test_a_cache_directory_that_cannot_be_written_is_no_riddle(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    settings = source_settings(tmp_path, file_roots=[tiny], cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(StorageUnavailable, match="cannot be used: Not a directory"):
        fetch(f"file://{tiny}", settings)


def test_statistics_in_use_stay_and_others_make_way_for_a_model(tiny: Path, tmp_path: Path) -> None:
    size = size_of(tiny)
    settings = source_settings(tmp_path, file_roots=[tiny], cache_limit_bytes=size + 60_000)
    cache = Cache(settings)
    first, second = cache.statistics("first", 40_000), cache.statistics("second", 20_000)
    assert first
    assert second
    # A third does not fit beside two that are written at this moment, whatever lies there already.
    assert cache.statistics("third", size + 100) is None
    (first.directory / "block").write_bytes(bytes(40_000))
    (second.directory / "block").write_bytes(bytes(20_000))
    first.close()
    fetch(f"file://{tiny}", settings)
    assert not first.directory.exists()
    assert (second.directory / "block").is_file()
    second.close()


def test_statistics_are_shared_and_survive_whoever_gathers_them(tmp_path: Path) -> None:
    settings = source_settings(tmp_path)
    holder = (
        "import sys, time; from pathlib import Path; from paredown.core.settings import Settings;"
        "from paredown.core.sources.cache import Cache;"
        "held = Cache(Settings(cache_dir=Path(sys.argv[1]))).statistics('key', 1000);"
        "(held.directory / 'block').write_text('half'); print('held', flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, settings.cache_dir], stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        beside = Cache(settings).statistics("key", 1000)
        assert beside
        other.kill()
        other.wait()
    assert (beside.directory / "block").read_text() == "half"
    beside.close()
    # Nobody holds it: it goes when room is needed.
    assert Cache(settings.model_copy(update={"cache_limit_bytes": 1000})).statistics("other", 1000)
    assert not beside.directory.exists()
