"""The `pare` command against a real API: results on standard output, exit codes for pipelines, never a traceback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from tests.client.conftest import MODEL, ApiServer, House, make_manifest
from tests.core.builders import make_calibration
from typer.testing import CliRunner, Result

from paredown.client.cli import app
from paredown.client.client import PareClient
from paredown.contracts.artifact import Manifest
from paredown.contracts.job import BUDGET_PRESETS, JobError, Phase, Progress
from paredown.contracts.report import Verdict
from paredown.core import jobs
from paredown.core.catalogue import NewArtifact
from paredown.core.settings import Settings
from paredown.core.storage import open_store

RECIPE = "recipe: [{method: rtn, bits: 4}]\nevaluation: {samples: 4}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(autouse=True)
def connection(server: ApiServer, api_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARE_API_URL", server.url)
    monkeypatch.setenv("PARE_API_KEY", api_key)
    monkeypatch.setenv("PARE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PARE_DEBUG", raising=False)


def pare(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="pare")


def told(result: Result) -> dict:  # type: ignore[type-arg] # whatever the command prints
    """Standard output, which must be one JSON document and nothing else."""
    return json.loads(result.stdout)


def test_submit_queues_what_the_file_says(recipe: str, client: PareClient) -> None:
    result = pare("submit", MODEL, recipe, "--name", "mine", "--tag", "a", "--max-size-ratio", "0.6", "--json")
    assert result.exit_code == 0
    job = client.job(told(result)["id"])
    assert (job.spec.name, job.spec.tags, job.spec.evaluation.samples) == ("mine", ("a",), 4)
    assert job.spec.budget
    assert job.spec.budget.max_size_ratio == 0.6


def test_an_idempotency_key_makes_one_job(recipe: str, client: PareClient) -> None:
    ids = {told(pare("submit", MODEL, recipe, "--idempotency-key", "nightly", "--json"))["id"] for _ in range(2)}
    assert len(ids) == len(list(client.jobs())) == 1


@pytest.mark.parametrize(
    ("ending", "code"),
    [("passed", 0), ("missed", 3), ("failed", 1), ("cancelled", 4)],
)
def test_the_exit_code_tells_how_a_job_ended(recipe: str, house: House, ending: str, code: int) -> None:
    def work() -> None:
        while not (queued := list_queued(house)):
            time.sleep(0.05)
        job_id = queued[0].id
        claim = house.claim()
        progress = Progress(phase=Phase.COMPRESS, fraction=0.5, block=3, num_blocks=6, eta_seconds=4)
        house.call(jobs.heartbeat, job_id, claim.epoch, progress, house.settings)
        match ending:
            case "failed":
                error = JobError(code="nan_found", detail="Layer 3 has NaN.")
                house.call(jobs.fail, job_id, claim.epoch, error, house.settings)
            case "cancelled":
                house.call(jobs.request_cancel, house.project, job_id)
                house.call(jobs.acknowledge_cancel, job_id, claim.epoch)
            case verdict:
                house.finish_claim(claim, Verdict(verdict))

    worker = threading.Thread(target=work)
    worker.start()
    result = pare("submit", MODEL, recipe, "--wait")
    worker.join()
    assert result.exit_code == code
    assert "compress, block 3 of 6" in result.stderr
    if ending == "failed":
        assert "Layer 3 has NaN. (nan_found)" in result.stdout
    # Watching a job that has ended says the same.
    job_id = told(pare("jobs", "--json"))["items"][0]["id"]
    watched = pare("watch", job_id, "--json")
    assert watched.exit_code == code
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_verdict_is_overridden_with_a_reason(house: House) -> None:
    artifact_id = str(house.finish(Verdict.MISSED))
    assert pare("artifacts", "override", artifact_id).exit_code == 2, "a reason must be given"
    result = pare("artifacts", "override", artifact_id, "--reason", "only for [drafts]")
    assert result.exit_code == 0
    assert "only for [drafts]" in result.stdout
    shown = pare("artifacts", "show", artifact_id)
    assert "overridden" in shown.stdout
    assert "only for [drafts]" in shown.stdout
    assert [item["id"] for item in told(pare("artifacts", "--verdict", "overridden", "--json"))["items"]] == [
        artifact_id
    ]
    again = pare("artifacts", "override", artifact_id, "--reason", "again", "--json")
    assert again.exit_code == 1
    assert "state_conflict" in again.output
    [job] = told(pare("jobs", "--json"))["items"]
    assert job["state"] == "rejected"


def test_a_job_may_ask_for_the_default_budget(recipe: str, client: PareClient) -> None:
    job = client.job(told(pare("submit", MODEL, recipe, "--budget", "default", "--json"))["id"])
    assert job.spec.budget == BUDGET_PRESETS["default"]
    assert pare("submit", MODEL, recipe, "--budget", "lax").exit_code == 2


def list_queued(house: House) -> list:  # type: ignore[type-arg]
    with house.database.transaction() as session:
        return jobs.list_jobs(session, house.project, states=["queued"], after=None, limit=1)[0]


def test_lists_and_single_things(house: House, recipe: str) -> None:
    artifact_id = str(house.finish(Verdict.PASSED))
    job = house.queue(tags=["waiting"])
    assert [item["state"] for item in told(pare("jobs", "--json"))["items"]] == ["queued", "succeeded"]
    assert str(job.id) in pare("jobs", "--state", "queued").stdout
    assert told(pare("job", str(job.id), "--json"))["id"] == str(job.id)
    assert told(pare("artifacts", "--verdict", "passed", "--json"))["items"][0]["id"] == artifact_id
    assert Manifest.model_validate(told(pare("artifact", artifact_id, "--json"))).artifact_id
    assert "22.000 (+10.0% over 20.000)" in pare("artifact", artifact_id).stdout
    front = pare("front", MODEL)
    assert front.exit_code == 0
    assert "+10.0%" in front.stdout
    assert "●" in front.stdout
    assert {point["artifact_id"] for point in told(pare("front", MODEL, "--json"))["points"]} == {artifact_id, None}
    assert "gptq" in pare("methods").stdout
    assert told(pare("methods", "--json"))["items"][0]["settings"]["properties"]["bits"]
    assert told(pare("plan", MODEL, recipe, "--json"))["output_bytes"] > 0
    assert "memory" in pare("plan", MODEL, recipe).stdout


def test_the_front_is_exported(house: House, tmp_path: Path) -> None:
    house.finish(Verdict.PASSED)
    starts = {"png": b"\x89PNG", "svg": b"<svg", "csv": b"id,name,"}
    for ending, start in starts.items():
        path = tmp_path / f"front.{ending}"
        assert pare("front", MODEL, "--export", str(path), "--max-size-ratio", "0.5").exit_code == 0
        assert path.read_bytes().startswith(start)
    refused = pare("front", MODEL, "--export", str(tmp_path / "front.pdf"))
    assert (refused.exit_code, "must end in" in refused.stderr) == (2, True)
    # None has been timed.
    empty = pare("front", MODEL, "--cost-axis", "peak_memory_bytes", "--export", str(tmp_path / "none.svg"))
    assert (empty.exit_code, "[not_found]" in empty.stderr) == (1, True)


def test_artifacts_are_compared(house: House) -> None:
    ids = [str(house.finish()) for _ in range(2)]
    table = pare("artifacts", "compare", *ids).stdout
    assert "Rise in perplexity" in table
    assert "+10.0%" in table
    compared = told(pare("artifacts", "compare", *ids, "--json"))
    assert (compared["artifacts"], compared["settings"]) == (ids, [])
    for wrong in ([ids[0]], [ids[0], ids[0]], [str(uuid4()) for _ in range(7)]):
        result = pare("artifacts", "compare", *wrong)
        assert result.exit_code == 2
        assert "Two to 6 different artifacts" in result.stderr


def test_an_alias_stands_for_an_artifact_in_every_command(house: House, tmp_path: Path) -> None:
    first, second = (str(house.finish(Verdict.PASSED)) for _ in range(2))
    assert pare("aliases", "set", "team/prod", first, "--protected", "--reason", "best of [three]").exit_code == 0
    shown = pare("aliases", "show", "team/prod")
    assert first in shown.stdout
    assert "best of [three]" in shown.stdout
    assert told(pare("download", "@team/prod", str(tmp_path / "got"), "--json"))["artifact_id"] == first
    assert told(pare("artifacts", "show", "@team/prod", "--json"))["artifact_id"] == first
    assert told(pare("verify", "@team/prod", "--json"))["artifact_id"] == first
    assert told(pare("artifacts", "compare", "@team/prod", second, "--json"))["artifacts"] == [first, second]
    missed = str(house.finish(Verdict.MISSED))
    refused = pare("aliases", "set", "team/prod", missed, "--json")
    assert (refused.exit_code, told(refused)["error"]["code"]) == (1, "alias_protected")
    [alias] = told(pare("aliases", "list", "--json"))["items"]
    assert (alias["artifact_id"], alias["protected"]) == (first, True)
    assert pare("aliases", "remove", "team/prod").exit_code == 0
    gone = pare("download", "@team/prod", str(tmp_path / "none"))
    assert (gone.exit_code, "not_found" in gone.stderr) == (1, True)
    nonsense = pare("download", "prod", str(tmp_path / "none"))
    assert nonsense.exit_code == 2


def test_the_price_book_is_kept_from_the_command_line(house: House) -> None:
    assert pare("prices", "set", "small", "0.1", "--memory-gb", "2", "--currency", "EUR").exit_code == 0
    assert pare("prices", "set", "large", "0.4", "--memory-gb", "16", "--as-of", "2026-11-01").exit_code == 0
    assert pare("prices", "set", "small", "0.2", "--memory-gb", "2").exit_code == 0
    items = told(pare("prices", "list", "--json"))["items"]
    assert [(item["name"], item["price_per_hour"], item["currency"]) for item in items] == [
        ("large", 0.4, "EUR"),
        ("small", 0.2, "EUR"),
    ]
    assert items[0]["as_of"] == "2026-11-01"
    mixed = pare("prices", "set", "dollars", "1", "--memory-gb", "2", "--currency", "USD")
    assert (mixed.exit_code, "several currencies" in mixed.stderr) == (2, True)
    assert pare("prices", "remove", "small").exit_code == 0
    assert pare("prices", "remove", "small").exit_code == 1
    assert "large" in pare("prices", "list").stdout


def test_savings_are_told(house: House) -> None:
    artifact_id = str(house.finish())
    saved = told(pare("savings", artifact_id, "--loads", "10", "--json"))
    assert saved["bytes_saved"] == 10 * (2000 - 800)
    assert saved["saved"] is None, "nothing was timed"
    assert "The price book is empty" in pare("savings", artifact_id).stderr


def test_cancel_and_retry(house: House) -> None:
    job = house.queue()
    assert told(pare("cancel", str(job.id), "--json"))["state"] == "cancelled"
    again = pare("cancel", str(job.id))
    assert again.exit_code == 1
    assert "[state_conflict]" in again.stderr
    failed = house.queue()
    claim = house.claim()
    house.call(jobs.fail, failed.id, claim.epoch, JobError(code="x", detail="broke"), house.settings)
    assert told(pare("retry", str(failed.id), "--json"))["state"] == "queued"


def test_download_then_verify(house: House, tmp_path: Path, no_pauses: None) -> None:
    artifact_id = str(house.finish())
    out = tmp_path / "out"
    result = pare("download", artifact_id, str(out))
    assert (result.exit_code, result.stdout.strip()) == (0, str(out))
    assert pare("verify", str(out)).exit_code == 0
    assert pare("verify", artifact_id).exit_code == 0
    (out / "extra.bin").write_bytes(b"x")
    model = out / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    damaged = pare("verify", str(out), "--json")
    assert damaged.exit_code == 1
    assert told(damaged)["intact"] is False
    assert told(damaged)["unlisted"] == ["extra.bin"]
    assert "model.safetensors has 2999999 bytes, not 3000000" in damaged.stderr
    house.stored("model.safetensors").write_bytes(b"?")
    broken = pare("verify", artifact_id)
    assert broken.exit_code == 1
    assert "model.safetensors breaks off after 1 of 3000000 bytes" in broken.stderr
    assert pare("verify", str(tmp_path / "nothing")).exit_code == 2
    assert "holds no manifest.json" in pare("verify", str(tmp_path)).stderr


def test_keys_and_data_sets(tmp_path: Path) -> None:
    made = told(pare("keys", "create", "ci", "--scope", "jobs:read", "--scope", "jobs:write", "--json"))
    assert made["secret"].startswith("pare_")
    assert "ci" in pare("keys", "list").stdout
    assert made["secret"] not in pare("keys", "list", "--json").stdout
    assert pare("keys", "revoke", made["key"]["id"]).exit_code == 0
    text = tmp_path / "text.txt"
    text.write_text("Some words to calibrate on.")
    uri = pare("datasets", "upload", str(text)).stdout.strip()
    assert uri.startswith("dataset://")
    assert told(pare("datasets", "list", "--json"))["items"][0]["name"] == "text.txt"
    assert pare("datasets", "delete", uri.removeprefix("dataset://")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["job", "not-an-id"], 2, "valid UUID"),
        (["submit", MODEL, "missing.yaml"], 2, "missing.yaml cannot be read"),
        (["submit", "gpt2", "{recipe}"], 2, "gpt2 is not an address"),
        (["submit", "nope://x", "{recipe}"], 1, "scheme_unknown"),
        (["submit", MODEL, "{recipe}", "--pool", "none"], 1, "pool_unknown"),
        (["submit", MODEL, "{recipe}", "--priority", "1000"], 2, "priority: it should be less than or equal to 100"),
        (["submit", MODEL, "{recipe}", "--max-size-ratio", "9"], 2, "max_size_ratio"),
        (["job", str(uuid4())], 1, "not_found"),
        (["jobs", "--nonsense"], 2, "--nonsense"),
        (["front", "pkg://nobody/nothing"], 1, "not_found"),
        (["datasets", "upload", "/nowhere"], 2, "/nowhere"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_a_code(arguments: list[str], code: int, says: str, recipe: str) -> None:
    result = pare(*(recipe if word == "{recipe}" else word for word in arguments))
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_with_json_a_failure_is_told_in_json_too(recipe: str) -> None:
    result = pare("submit", "nope://x", recipe, "--json")
    error = told(result)["error"]
    assert result.exit_code == 1
    assert (error["code"], error["status"], error["field"]) == ("scheme_unknown", 422, "model")
    assert error["request_id"]


def test_no_service(monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> None:
    monkeypatch.setenv("PARE_API_URL", "http://127.0.0.1:1")
    result = pare("jobs")
    assert result.exit_code == 5
    assert "[service_unreachable]" in result.stderr
    monkeypatch.delenv("PARE_API_KEY")
    assert "Set PARE_API_KEY" in pare("jobs").stderr
    monkeypatch.delenv("PARE_API_URL")
    result = pare("jobs", "--json")
    assert result.exit_code == 5
    assert "pare up" in told(result)["error"]["detail"]


def test_a_bug_shows_one_sentence_and_the_way_to_its_details(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paredown.client.render.jobs", lambda _: 1 / 0)
    result = pare("jobs")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "PARE_DEBUG=1" in result.stderr
    assert "Traceback" not in result.output
    monkeypatch.setenv("PARE_DEBUG", "1")
    assert isinstance(pare("jobs").exception, ZeroDivisionError)


def test_the_embedded_stacks_key_is_found(
    tmp_path: Path, server: ApiServer, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARE_API_URL")
    monkeypatch.delenv("PARE_API_KEY")
    home = tmp_path / "home"
    home.mkdir()
    (home / "credentials.json").write_text(json.dumps({"api_url": server.url, "api_key": api_key}))
    assert pare("jobs").exit_code == 0
    # It is sent to its own service only.
    monkeypatch.setenv("PARE_API_URL", "http://127.0.0.1:1")
    assert "Set PARE_API_KEY" in pare("jobs").stderr
    monkeypatch.delenv("PARE_API_URL")
    (home / "credentials.json").write_text("{")
    assert pare("jobs").exit_code == 5


def test_brackets_in_names_are_shown_as_they_are(house: House, client: PareClient) -> None:
    artifact_id = house.finish()
    client.update_artifact(artifact_id, name="[bold]7")
    assert "[bold]7" in pare("artifacts").stdout


def test_ctrl_c_while_watching_leaves_the_job_alone(house: House, client: PareClient, settings: Settings) -> None:
    job = house.queue()
    process = subprocess.Popen(
        [sys.executable, "-m", "paredown.client.cli", "watch", str(job.id)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stderr
    assert "queued" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"pare watch {job.id}" in err
    assert "Traceback" not in out + err
    assert not client.job(job.id).state.terminal


SWEEP = f"model: {MODEL}\ngrid: {{recipe: [{{method: rtn}}], values: {{0.bits: [4, 8]}}}}\n"


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return str(path)


def test_a_sweep_is_submitted_shown_and_cancelled_as_one(sweep: str, client: PareClient) -> None:
    made = told(pare("sweep", "submit", sweep, "--name", "mine", "--json"))
    assert {job.recipe_name for job in client.jobs(sweep=made["id"])} == {"rtn-4", "rtn-8"}
    assert told(pare("sweep", "list", "--json"))["items"][0]["name"] == "mine"
    shown = pare("sweep", "show", made["id"])
    assert "2: 2 queued" in shown.stdout
    assert "rtn-4" in shown.stdout
    cancelled = pare("sweep", "cancel", made["id"])
    assert "2: 2 cancelled" in cancelled.stdout
    assert pare("sweep", "watch", made["id"]).exit_code == 4
    assert pare("sweep", "cancel", made["id"]).exit_code == 1


@pytest.mark.parametrize(("ending", "code"), [(None, 0), (Verdict.MISSED, 3), ("failed", 1)])
def test_the_exit_code_tells_how_a_sweep_ended(
    sweep: str, house: House, client: PareClient, ending: Verdict | str | None, code: int
) -> None:
    made = told(pare("sweep", "submit", sweep, "--json"))
    for _ in range(2):
        claim = house.claim()
        if ending == "failed":
            error = JobError(code="nan_found", detail="Layer 3 has NaN.")
            house.call(jobs.fail, claim.job.id, claim.epoch, error, house.settings)
        else:
            house.finish_claim(claim, ending if isinstance(ending, Verdict) else None)
    watched = pare("sweep", "watch", made["id"])
    assert watched.exit_code == code
    assert "100%" in watched.stderr


def test_calibrations_are_compared_as_one_sweep(tmp_path: Path, house: House, client: PareClient) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("recipe: [{method: wanda}]\ncalibration: {samples: 4, min_expert_tokens: 8}\n")

    def work() -> None:
        give_up_at = time.monotonic() + 60
        done = 0
        while done < 2 and time.monotonic() < give_up_at:
            with house.database.transaction() as session:
                claim = jobs.claim(session, "cpu", "test", house.settings)
            if claim:
                house.finish_claim(claim)
                done += 1
            else:
                time.sleep(0.05)

    worker = threading.Thread(target=work)
    worker.start()
    result = pare("calibrations", "compare", MODEL, str(path), "--seed", "1", "--seed", "2", "--name", "seeds")
    worker.join()
    assert result.exit_code == 0, result.stderr
    assert "seed 1" in result.stdout
    assert "max − min" in result.stdout
    [sweep] = client.sweeps()
    spec = client.sweep(sweep.id).spec
    assert [(each.seed, each.samples, each.min_expert_tokens) for each in spec.calibrations] == [(1, 4, 8), (2, 4, 8)]
    assert "seed 2" in pare("sweep", "show", str(sweep.id)).stdout
    one = pare("calibrations", "compare", MODEL, str(path), "--seed", "1")
    assert (one.exit_code, "two to 8" in one.stderr) == (2, True)
    unknown = pare("calibrations", "compare", MODEL, str(path), "--source", str(uuid4()), "--source", str(uuid4()))
    assert "source_not_found" in unknown.stderr


def test_calibrations_are_listed_shown_and_brought_here(tmp_path: Path, house: House) -> None:
    content = b"tokens" * 40
    new = make_calibration(size_bytes=len(content), file_sha256=sha256(content).hexdigest())
    open_store(house.settings).put_bytes(new.storage_key, content)
    house.queue()
    claim = house.claim()
    made = NewArtifact(make_manifest(claim.job.id, {}, None), "artifacts/x/1", "made", calibration=new)
    house.call(jobs.finish, claim.job.id, claim.epoch, made)
    assert told(pare("calibrations", "list", "--json"))["items"][0]["id"] == str(new.id)
    assert "2 × 16" in pare("calibrations", "list").stdout
    shown = pare("calibrations", "show", str(new.id)).stdout
    assert f"calibration://{new.id}" in shown
    assert "2 experts, of which the least reached saw 0 tokens" in shown
    assert pare("calibrations", "download", str(new.id), str(tmp_path / "tokens.npy")).exit_code == 0
    assert (tmp_path / "tokens.npy").read_bytes() == content
    assert pare("calibrations", "delete", str(new.id)).exit_code == 0
    assert pare("calibrations", "show", str(new.id)).exit_code == 1


def test_a_sweep_file_is_refused_with_the_place_of_the_mistake(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"model: {MODEL}\nrecipes: [[{{method: rtn}}], [{{method: rtn, bits: 7}}]]\n")
    refused = pare("sweep", "submit", str(path))
    assert refused.exit_code == 2
    assert "recipes.1.0.bits" in refused.stderr


def test_a_search_is_submitted_shown_and_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(
        f"model: {MODEL}\nspace: {{quantizers: [gptq], bits: [3, 4], embeddings: [16], pruners: [], droppers: []}}\n"
    )
    assert "give max_size_ratio" in pare("search", "submit", str(path)).stderr
    made = told(pare("search", "submit", str(path), "--max-size-ratio", "0.5", "--json"))
    assert told(pare("search", "list", "--json"))["items"][0]["id"] == made["id"]
    # Groups of 128 do not divide the model's layers.
    assert "4 may be tried, 2 ruled out" in pare("search", "show", made["id"]).stdout
    assert "It was cancelled." in pare("search", "cancel", made["id"]).stdout
    assert pare("search", "watch", made["id"]).exit_code == 4
