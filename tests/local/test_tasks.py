"""`pare tasks export`: a directory that lm-eval runs as it is."""

import json
from pathlib import Path

import pytest
import yaml
from tests.support.task_rows import rows_of, save_rows

from paredown.client.errors import CommandFailed
from paredown.local.tasks import export_tasks


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARE_HOME", str(tmp_path / "home"))


def test_an_export_holds_definitions_and_the_rows_that_they_name(tmp_path: Path) -> None:
    rows = save_rows(tmp_path / "rows.jsonl", "piqa")
    out = tmp_path / "tasks"
    assert export_tasks(out, [f"piqa={rows}", f"mmlu={save_rows(tmp_path / 'mmlu.jsonl', 'mmlu').as_uri()}"]) == [
        "pare_piqa",
        "pare_mmlu",
    ]
    written = yaml.safe_load((out / "pare_piqa.yaml").read_text())
    assert written["task"] == "pare_piqa"
    named = Path(written["dataset_kwargs"]["data_files"]["test"])
    assert named == out / "rows" / "piqa.jsonl"
    assert [json.loads(line) for line in named.read_text().splitlines()] == rows_of("piqa")


@pytest.mark.parametrize(
    ("given", "code"),
    [("squad=x.jsonl", "task_unknown"), ("piqa", "task_unknown"), ("piqa=/absent.jsonl", "source_not_found")],
)
def test_what_cannot_be_exported_is_said(tmp_path: Path, given: str, code: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        export_tasks(tmp_path / "tasks", [given])
    assert refused.value.code == code


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="is not empty"):
        export_tasks(tmp_path, [f"piqa={save_rows(tmp_path / 'rows.jsonl', 'piqa')}"])
