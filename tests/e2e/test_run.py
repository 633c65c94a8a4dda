"""`pare run`: the engine in the foreground, no services; resumed when it was killed."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
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


@pytest.mark.slow
def test_runs_share_dense_statistics_in_a_directory(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    shared = home / "statistics"
    refused = pare("run", model, recipes / "gptq.yaml", home / "none", "--statistics", shared, expect=2)
    assert "statistics: dense" in refused.stderr
    settings = yaml.safe_load((recipes / "gptq.yaml").read_text())
    settings["calibration"]["statistics"] = "dense"
    gathered: list[dict[str, int]] = []
    for bits in (4, 3):
        recipe = [{"method": "gptq", "bits": bits}]
        (home / "recipe.yaml").write_text(yaml.safe_dump(settings | {"recipe": recipe}))
        arguments = ("run", model, home / "recipe.yaml", home / f"dense-{bits}", "--no-evaluation")
        pare(*arguments, "--statistics", shared)
        gathered.append({path.name: path.stat().st_mtime_ns for path in shared.rglob("block-*")})
    assert gathered[0]
    # The second run found all that it needed.
    assert gathered[0] == gathered[1]


def test_without_evaluation(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    out = home / "quick"
    pare("run", model, recipes / "wanda.yaml", out, "--no-evaluation")
    assert manifest_of(out).report.artifact is None
    refused = pare(
        *("run", model, recipes / "wanda.yaml", home / "other", "--no-evaluation", "--max-perplexity-increase", "0.1"),
        expect=2,
    )
    assert "needs an evaluation" in refused.stderr


@pytest.fixture(scope="module")
def longer_model(home: Path) -> Path:
    """Long enough to be stopped on the way."""
    return random_llama(home / "longer", blocks=24, hidden=128)


def test_a_run_that_was_killed_goes_on_at_its_last_block(
    pare: Pare, home: Path, recipes: Path, longer_model: Path
) -> None:
    out, work = home / "killed", home / "killed.work"
    arguments = ("run", longer_model, recipes / "gptq.yaml", out, "--no-evaluation")
    first = start(pare, *arguments)
    wait_for_blocks(work, first, 2)
    engines = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.communicate(timeout=30)
    # The engine ends by itself when nobody is at the other end.
    assert psutil.wait_procs(engines, timeout=30)[1] == []
    kept = blocks(work)
    second = start(pare, *arguments)
    wait_for_blocks(work, second, len(kept) + 1)
    assert kept.items() <= blocks(work).items()
    second.communicate(timeout=120)
    assert second.returncode == 0
    assert list(verify_files(manifest_of(out), out)) == []
    assert not work.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_takes_its_engine_along(
    pare: Pare, home: Path, recipes: Path, longer_model: Path, number: signal.Signals, code: int
) -> None:
    out, work = home / number.name, home / f"{number.name}.work"
    process = start(pare, "run", longer_model, recipes / "gptq.yaml", out, "--no-evaluation")
    wait_for_blocks(work, process, 1)
    engines = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in told
    assert psutil.wait_procs(engines, timeout=5)[1] == []
    assert not out.exists()
    assert blocks(work)


def start(pare: Pare, *arguments: object) -> "subprocess.Popen[str]":
    command = pare.command(*arguments)
    return subprocess.Popen(command, env=pare.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def blocks(work: Path) -> dict[Path, int]:
    """Finished blocks that the journal counts, and when each was written."""
    checkpoint = work / "checkpoint"
    try:
        journal = (checkpoint / "journal.json").read_text()
    except FileNotFoundError:
        return {}
    return {path: path.stat().st_mtime_ns for path in checkpoint.glob("block-*.safetensors") if path.name in journal}


def wait_for_blocks(work: Path, process: "subprocess.Popen[str]", number: int) -> None:
    give_up_at = time.monotonic() + 120
    while len(blocks(work)) < number:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < give_up_at, "too few finished blocks"
        time.sleep(0.02)


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
    assert not (home / "never.work").exists()


def test_a_result_that_can_lie_nowhere_is_a_sentence(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    (home / "file").write_text("x")
    result = pare("run", model, recipes / "rtn.yaml", home / "file" / "out", expect=2)
    assert f"cannot be made in {home / 'file'}" in result.stderr
    assert "[target_unwritable]" in result.stderr


def test_somebody_elses_directory_is_left_alone(pare: Pare, home: Path, model: Path, recipes: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.txt").write_text("x")
    assert "choose another" in pare("run", model, recipes / "rtn.yaml", home / "mine", expect=2).stderr
    assert [path.name for path in (home / "mine").iterdir()] == ["thesis.txt"]
