"""Rows of tasks: what is taken, in which order, and what is refused with the row and the field to blame."""

import csv
import io
import json
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
from tests.support.sources import source_settings
from tests.support.task_rows import rows_of

from paredown.contracts.tasks import TASKS, TaskName
from paredown.core.errors import NotFound, SchemeUnknown, SourceNotFound, TaskRowsUnusable
from paredown.core.settings import Settings
from paredown.core.sources import check_rows_uri, fetch_rows
from paredown.core.sources.rows import task_rows
from paredown.core.storage import LocalStore

NAMES: tuple[TaskName, ...] = get_args(TaskName)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return source_settings(tmp_path)


def fetched(uri: str, settings: Settings, task: TaskName, key: str | None = None) -> list[dict[str, Any]]:
    def resolve(dataset: UUID) -> str:
        if key is None:
            raise NotFound(f"There is no data set {dataset}.")
        return key

    store = LocalStore(settings.cache_dir.parent / "store")
    path = fetch_rows(uri, settings, task=task, store=store, resolve_dataset=resolve)
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("task", NAMES)
def test_rows_as_the_hub_has_them_are_taken_with_the_fields_that_the_task_reads(task: TaskName) -> None:
    taken = [json.loads(line) for line in task_rows(lines(rows_of(task)).encode(), "rows.jsonl", task).splitlines()]
    assert len(taken) == 6
    assert all(set(row) == set(TASKS[task].row.model_fields) for row in taken)


@pytest.mark.parametrize("task", NAMES)
def test_parquet_gives_the_same_rows(task: TaskName) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows_of(task)), file)
    expected = task_rows(lines(rows_of(task)).encode(), "rows.jsonl", task)
    assert task_rows(file.getvalue(), "test-00000-of-00001.parquet", task) == expected
    assert task_rows(file.getvalue(), "dataset://without-a-suffix", task) == expected


def test_csv_gives_the_same_rows() -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["", *rows_of("crows_pairs")[0]])
    writer.writeheader()
    writer.writerows({"": str(index), **row} for index, row in enumerate(rows_of("crows_pairs")))
    expected = task_rows(lines(rows_of("crows_pairs")).encode(), "rows.jsonl", "crows_pairs")
    assert task_rows(file.getvalue().encode(), "crows_pairs.csv", "crows_pairs") == expected


def test_kinds_take_turns_so_that_a_limit_reaches_all_of_them() -> None:
    rows = [dict(rows_of("blimp")[0], UID=kind) for kind in "aaabbc"]
    taken = task_rows(lines(rows).encode(), "rows.jsonl", "blimp")
    assert [json.loads(line)["UID"] for line in taken.splitlines()] == ["a", "b", "c", "a", "b", "a"]


def test_a_directory_is_its_json_lines_in_the_order_of_their_names(settings: Settings, tmp_path: Path) -> None:
    directory = tmp_path / "lambada"
    directory.mkdir()
    (directory / "b.jsonl").write_text('{"text": "second one"}')
    (directory / "a.jsonl").write_text('{"text": "first one"}')
    (directory / "readme.md").write_text("not read")
    assert [row["text"] for row in fetched(f"file://{directory}", settings, "lambada")] == ["first one", "second one"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFound, match=r"holds no files that end in \.jsonl"):
        fetched(f"file://{tmp_path}/empty", settings, "lambada")


def test_an_upload_is_read_from_the_store(settings: Settings) -> None:
    LocalStore(settings.cache_dir.parent / "store").put_bytes("datasets/x", lines(rows_of("piqa")).encode())
    rows = fetched(f"dataset://{UUID(int=1)}", settings, "piqa", "datasets/x")
    assert [row["goal"] for row in rows] == [row["goal"] for row in rows_of("piqa")]


@pytest.mark.parametrize(
    ("task", "change", "blamed"),
    [
        ("lambada", {"text": "oneword"}, "field text"),
        ("blimp", {"sentence_bad": None}, "field sentence_bad"),
        ("hellaswag", {"label": "4"}, "field label"),
        ("hellaswag", {"endings": ["a", "b"]}, "field endings"),
        ("arc_easy", {"answerKey": "E"}, "answerKey is none of choices.label"),
        ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["A"]}}, r"field choices\.label"),
        ("piqa", {"label": -1}, "field label"),
        ("winogrande", {"sentence": "no gap"}, "field sentence"),
        ("mmlu", {"answer": 4}, "field answer"),
        ("gsm8k", {"answer": "twelve"}, "field answer"),
        ("truthfulqa_mc1", {"mc1_targets": {"choices": ["a", "b"], "labels": [0, 1]}}, "first choice of mc1_targets"),
        ("truthfulqa_mc2", {"mc2_targets": {"choices": ["a", "b"], "labels": [1]}}, "differ in length"),
        ("crows_pairs", {"bias_type": ""}, "field bias_type"),
    ],
)
def test_a_row_of_another_form_is_refused_by_number_and_field(task: TaskName, change: Any, blamed: str) -> None:
    rows = rows_of(task)
    rows[2] |= change
    with pytest.raises(TaskRowsUnusable, match=rf"Row 3 of rows\.jsonl is no row of {task}, field|Row 3 .*") as refused:
        task_rows(lines(rows).encode(), "rows.jsonl", task)
    assert refused.match(blamed)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.jsonl", b'{"text": "a b"}\n{"text": \n', "line 2 is not JSON"),
        ("rows.csv", b"\xff\xfe", "neither JSON lines nor Parquet nor CSV"),
        ("rows.txt", b"text\na b\n", None),
    ],
)
def test_a_file_of_no_known_form_is_refused(name: str, data: bytes, said: str | None) -> None:
    if said is None:
        assert task_rows(data, name, "lambada") == b'{"text": "a b"}\n'
        return
    with pytest.raises(TaskRowsUnusable, match=said):
        task_rows(data, name, "lambada")


def test_a_built_in_text_holds_no_rows(settings: Settings) -> None:
    with pytest.raises(SchemeUnknown, match="holds no rows of a task"):
        check_rows_uri("builtin://python-docs", settings)
    with pytest.raises(SchemeUnknown, match="holds no rows of a task"):
        fetched("builtin://python-docs", settings, "lambada")
