"""The embedded stack as its users know it: up, a job from submit to a verified download, things that die, down."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.e2e.conftest import Pare


@pytest.fixture(scope="module")
def stack(pare: Pare, model: Path) -> Iterator[Pare]:
    pare("up")
    yield pare
    pare("down")


def pids(pare: Pare) -> dict[str, int | None]:
    return {name: part["pid"] for name, part in pare.json("status", expect=None)["parts"].items()}


def test_a_job_from_submit_to_a_verified_download(stack: Pare, home: Path, model: Path, recipes: Path) -> None:
    uri = model.as_uri()
    assert stack.json("plan", uri, recipes / "gptq.yaml")["output_bytes"] > 0
    job = stack.json("submit", uri, recipes / "gptq.yaml", "--wait", "--tag", "e2e", "--name", "tiny-gptq")
    assert job["state"] == "succeeded"
    [artifact] = stack.json("artifacts", "--tag", "e2e")["items"]
    assert artifact["id"] == job["artifact_id"]
    assert artifact["name"] == "tiny-gptq"
    stack("download", artifact["id"], home / "downloaded")
    stack("verify", home / "downloaded")
    stack("verify", artifact["id"])
    manifest = json.loads((home / "downloaded" / "manifest.json").read_text())
    assert manifest["report"]["runtimes"][0]["loads"] is True
    front = stack.json("front", uri)
    assert {point["artifact_id"] for point in front["points"]} == {None, artifact["id"]}
    assert "tiny-gptq" in stack("front", uri).stdout


@pytest.mark.slow
def test_a_canary_is_told_while_the_job_is_watched_and_changes_no_byte(
    stack: Pare, home: Path, model: Path, recipes: Path
) -> None:
    plain = stack.json("submit", model.as_uri(), recipes / "gptq.yaml", "--wait")
    stack("download", plain["artifact_id"], home / "plain")
    without = json.loads((home / "plain" / "manifest.json").read_text())
    result = stack("submit", model.as_uri(), recipes / "gptq.yaml", "--wait", "--canary", "--tag", "canary", "--json")
    job = json.loads(result.stdout)
    assert job["state"] == "succeeded"
    assert "Canary: 1 of 3 blocks took" in result.stderr
    assert job["canary"]["passed"] is True
    assert job["canary"]["memory_bytes"]["expected"] > 100e6
    # Server-sent events, as any client reads them.
    events = [json.loads(line) for line in stack("watch", job["id"], "--json").stdout.splitlines()]
    types = [event["type"] for event in events]
    [told] = [event["data"] for event in events if event["type"] == "canary"]
    assert told == job["canary"]
    compressed = [event["data"].get("phase") for event in events].index("compress")
    assert types.index("claimed") < types.index("canary") < compressed
    stack("download", job["artifact_id"], home / "rehearsed")
    manifest = json.loads((home / "rehearsed" / "manifest.json").read_text())
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == {
        file["path"]: file["sha256"] for file in without["files"]
    }


def test_a_missed_budget_is_exit_code_3(stack: Pare, model: Path, recipes: Path) -> None:
    arguments = ("submit", model.as_uri(), recipes / "rtn.yaml", "--wait", "--max-size-ratio", "0.01")
    job = stack.json(*arguments, expect=3)
    assert job["state"] == "rejected"
    assert stack.json("artifact", job["artifact_id"])["report"]["gate"]["verdict"] == "missed"


def test_files_outside_the_models_directory_are_refused(stack: Pare, home: Path, recipes: Path) -> None:
    result = stack("submit", (home / "recipes").as_uri(), recipes / "rtn.yaml", expect=1)
    assert "[source_not_allowed]" in result.stderr


def test_the_addresses_answer_on_this_machine_only(stack: Pare) -> None:
    addresses = stack.json("up")
    assert httpx.get(addresses["docs"]).status_code == 200
    assert httpx.get(addresses["web"]).status_code == 200
    for name, pid in pids(stack).items():
        process = psutil.Process(pid)
        listening = [
            connection.laddr.ip
            for one in (process, *process.children(recursive=True))
            for connection in one.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) <= {"127.0.0.1"}, name


def test_secrets_are_readable_by_their_owner_only(stack: Pare) -> None:
    for name in ("credentials.json", "secret", "stack.json"):
        assert (stack.home / name).stat().st_mode & 0o077 == 0, name
    assert (stack.home / "store").stat().st_mode & 0o077 == 0


def test_up_again_starts_nothing(stack: Pare) -> None:
    before = pids(stack)
    result = stack("up")
    assert pids(stack) == before
    assert "Starting" not in result.stderr


def test_what_died_is_started_again_and_jobs_go_on(stack: Pare, model: Path, recipes: Path) -> None:
    before = pids(stack)
    job = stack.json("submit", model.as_uri(), recipes / "wanda.yaml")
    for name in ("worker", "api", "redis", "web"):
        kill(before[name])
    assert stack("status", expect=5).stdout.count("stopped") == 4
    assert "cannot be reached" in stack("jobs", expect=5).stderr
    stack("up")
    after = pids(stack)
    assert all(after.values())
    assert after["postgres"] == before["postgres"]
    assert stack("watch", job["id"]).returncode == 0
    assert stack("status").stdout.count("process") == 6


def test_a_pruned_artifact_is_quantized_later(stack: Pare, home: Path, model: Path, recipes: Path) -> None:
    [pruned] = stack.json("artifacts", "--method", "wanda")["items"]
    address = f"artifact://{pruned['id']}"
    job = stack.json("submit", address, recipes / "gptq.yaml", "--wait", "--max-perplexity-increase", "100")
    assert job["state"] == "succeeded"
    stack("download", job["artifact_id"], home / "further")
    stack("verify", home / "further")
    manifest = json.loads((home / "further" / "manifest.json").read_text())
    assert manifest["base"]["uri"] == model.as_uri()
    assert [ancestor["artifact_id"] for ancestor in manifest["lineage"]] == [pruned["id"]]
    # The base is the pruned model's own, measured in its job; the zeros are those of the pruned model.
    assert (manifest["report"]["base"]["perplexity"], manifest["report"]["base"]["cached"]) == (
        pruned["base_perplexity"],
        True,
    )
    assert manifest["report"]["base_bytes"] == pruned["base_bytes"]
    assert manifest["report"]["sparsity"] >= 0.5
    assert manifest["report"]["runtimes"][0]["loads"] is True
    points = {point["artifact_id"] for point in stack.json("front", model.as_uri())["points"]}
    assert {pruned["id"], job["artifact_id"]} < points
    assert pruned["id"] in stack("artifact", job["artifact_id"]).stdout
    refused = stack("submit", f"artifact://{job['artifact_id']}", recipes / "wanda.yaml", expect=1)
    assert "[model_rejected]" in refused.stderr
    here = stack("run", address, recipes / "gptq.yaml", home / "here", expect=1)
    assert f"pare download {pruned['id']} DIRECTORY" in here.stderr.replace("\n", " ")


def test_other_settings_restart_what_they_concern(stack: Pare) -> None:
    before = pids(stack)
    changed = Pare(stack.home, stack.environment | {"PARE_CURRENCY": "EUR"})
    assert "other settings" in changed("up").stderr
    after = pids(stack)
    assert after["postgres"] == before["postgres"]
    assert after["api"] != before["api"]
    stack("up")


def test_a_setting_that_cannot_be_used_is_named(stack: Pare) -> None:
    broken = Pare(stack.home, stack.environment | {"PARE_LEASE_SECONDS": "soon"})
    result = broken("up", expect=1)
    assert "lease_seconds" in result.stderr
    assert all(pids(stack).values())


def test_down_stops_what_up_started_and_nothing_else(stack: Pare) -> None:
    before = pids(stack)
    families = {
        name: [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] for name, pid in before.items()
    }
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        stopped = stack.json("down")["stopped"]
        assert set(stopped) == set(before)
        for name, family in families.items():
            assert psutil.wait_procs(family, timeout=10)[1] == [], name
        assert stack.json("down")["stopped"] == []
        # A file from before a crash or a reboot: its ids now belong to somebody else.
        file = json.loads((stack.home / "stack.json").read_text())
        file["parts"]["worker"] = {"pid": stranger.pid, "started_at": time.time() - 86400, "port": None}
        (stack.home / "stack.json").write_text(json.dumps(file))
        assert stack.json("down")["stopped"] == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    # The data is still there, and so is the key.
    stack("up")
    assert stack.json("jobs")["items"]


def kill(pid: int | None) -> None:
    assert pid
    process = psutil.Process(pid)
    process.kill()
    give_up_at = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < give_up_at:
        time.sleep(0.02)
