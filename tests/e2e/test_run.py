"""`pare run`: the engine in the foreground, no services; resumed when it was killed."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from tests.e2e.conftest import Pare
from tests.support.models import random_llama

from paredown.contracts.artifact import MANIFEST_NAME, Manifest, verify_files


def manifest_of(directory: Path) -> Manifest:
    return Manifest.model_validate_json((directory / MANIFEST_NAME).read_bytes())


def test_a_path_becomes_an_artifact_that_proves_itself(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    out = home / "gptq"
    result = pare("run", model, recipes / "gptq.yaml", out)
    assert "artifact" in result.stdout
    assert str(out) in result.stdout
    manifest = manifest_of(out)
    assert list(verify_files(manifest, out)) == []
    assert manifest.base.uri == model.as_uri()
    assert manifest.report.base
    assert manifest.report.artifact
    assert manifest.report.runtimes[0].loads
    assert manifest.report.cost
    assert not out.with_name("gptq.work").exists()
    pare("verify", out)
    # Once more says that it is there; another recipe is refused; neither touches it.
    before = (out / MANIFEST_NAME).read_bytes()
    assert "already" in pare("run", model, recipes / "gptq.yaml", out).stderr
    assert "not empty" in pare("run", model, recipes / "rtn.yaml", out, expect=2).stderr
    assert (out / MANIFEST_NAME).read_bytes() == before


def test_a_missed_budget_is_exit_code_3_with_the_evidence(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    out = home / "missed"
    result = pare("run", model, recipes / "rtn.yaml", out, "--max-size-ratio", "0.01", "--json", expect=3)
    report = json.loads(result.stdout)["report"]
    assert report["gate"]["verdict"] == "missed"
    assert report["gate"]["checks"][0]["figure"] == "size_ratio"
    assert manifest_of(out).report.gate


def test_without_evaluation(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    out = home / "quick"
    pare("run", model, recipes / "wanda.yaml", out, "--no-evaluation")
    assert manifest_of(out).report.artifact is None
    refused = pare(
        *("run", model, recipes / "wanda.yaml", home / "other", "--no-evaluation", "--max-perplexity-increase", "0.1"),
        expect=2,
    )
    assert "needs an evaluation" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_is_taken_up_again(
    pare: Pare, home: Path, recipes: Path, number: signal.Signals
) -> None:
    """Every block is durable once it is finished, and no engine stays behind, whatever ended the command."""
    name = f"stopped-{number.name}"
    model = random_llama(home / "slow", blocks=24, hidden=128)
    out, work = home / name, home / f"{name}.work"
    command = pare.command("run", model, recipes / "gptq.yaml", out, "--no-evaluation")
    process = subprocess.Popen(
        command, env=pare.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    shards = wait_for_shards(work, process)
    engines = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert "Traceback" not in told
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert psutil.wait_procs(engines, timeout=20)[1] == []
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in shards}
    pare("run", model, recipes / "gptq.yaml", out, "--no-evaluation")
    assert list(verify_files(manifest_of(out), out)) == []
    assert not work.exists()
    assert kept


def wait_for_shards(work: Path, process: "subprocess.Popen[str]") -> list[Path]:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        found = [path for path in (work / "checkpoint").rglob("*.safetensors") if path.is_file()]
        if len(found) >= 2:
            return found
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.02)
    raise AssertionError("no finished block within a minute")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nope://x", "scheme_unknown"),
        ("/nowhere/at/all", "source_not_found"),
        ("pkg://os/x.gguf", "source_not_allowed"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(pare: Pare, home: Path, recipes: Path, model: str, says: str) -> None:
    result = pare("run", model, recipes / "rtn.yaml", home / "never", expect=1)
    assert f"[{says}]" in result.stderr
    assert not (home / "never").exists()


def test_somebody_elses_directory_is_left_alone(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.txt").write_text("x")
    assert "choose another" in pare("run", model, recipes / "rtn.yaml", home / "mine", expect=2).stderr
    assert [path.name for path in (home / "mine").iterdir()] == ["thesis.txt"]
