"""Uploading text."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.support.task_rows import rows_of

from paredown.contracts.dataset import DatasetView
from paredown.contracts.tasks import TaskName
from paredown.core.settings import Settings

LIMIT = 2 * 2**20


def test_an_uploaded_text_is_stored_byte_for_byte(api: httpx.Client, server: Any) -> None:
    content = "Grüße, 世界\n".encode() * 50_000
    answer = api.post("/v1/datasets", files={"file": ("notes.txt", content)}, data={"name": " my notes "})
    assert answer.status_code == 201
    view = DatasetView.model_validate_json(answer.content)
    assert (view.name, view.size_bytes, view.sha256) == (
        "my notes",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    store = server.app.state.service.store
    assert b"".join(store.read_range(f"datasets/{view.id}", 0, len(content))) == content
    assert api.get(answer.headers["location"]).json() == answer.json()
    assert api.get("/v1/datasets").json()["items"] == [answer.json()]
    assert api.delete(answer.headers["location"]).status_code == 204
    assert api.get(answer.headers["location"]).status_code == 404
    assert store.size(f"datasets/{view.id}") is None


def test_the_files_name_is_taken_where_none_is_given(api: httpx.Client) -> None:
    assert api.post("/v1/datasets", files={"file": ("lines.jsonl", b'{"text": "a"}\n')}).json()["name"] == "lines.jsonl"


@pytest.mark.parametrize("task", ["blimp", "arc_easy", "crows_pairs"])
def test_rows_of_a_task_are_taken_though_they_have_no_text_field(api: httpx.Client, task: TaskName) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows_of(task))
    answer = api.post("/v1/datasets", files={"file": (f"{task}.jsonl", lines.encode())})
    assert answer.status_code == 201


UNUSABLE = {
    "empty": ("a.txt", b""),
    "blank": ("a.txt", b" \n\t\r\n"),
    "latin-1": ("a.txt", b"caf\xe9 au lait"),
    "cut character": ("a.txt", "é".encode()[:1]),
    "NUL": ("a.txt", b"a\0b"),
    "zip": ("a.txt", b"PK\x03\x04\xff\xfe"),
    "broken JSON lines": ("a.jsonl", b'{"text": "a"}\n{"text": \n'),
    "JSON lines by their first line": ("a", b'\n{"text": "a"}\nplain'),
    "without text": ("a.jsonl", b'{"body": "a"}\n'),
    "text is no string": ("a.jsonl", b'{"text": 3}\n'),
    "rows of a task, then something else": ("a.jsonl", json.dumps(rows_of("blimp")[0]).encode() + b"\n{\n"),
    "nested": ("a.jsonl", b"[" * 100_000),
}


def test_what_is_not_text_is_refused_and_not_kept(
    api: httpx.Client, settings: Settings, subtests: pytest.Subtests
) -> None:
    for name, (filename, content) in UNUSABLE.items():
        with subtests.test(name):
            answer = api.post("/v1/datasets", files={"file": (filename, content)})
            assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "text_unusable", "file")
    assert api.get("/v1/datasets").json()["items"] == []


def test_what_looks_a_little_like_json_is_plain_text(api: httpx.Client) -> None:
    for content in (b"{a brace} and words", b'{"body": "a"}\n', b"[1, 2]\n"):
        assert api.post("/v1/datasets", files={"file": ("a.txt", content)}).status_code == 201


def test_an_upload_is_bounded_whether_or_not_it_says_its_size(api: httpx.Client) -> None:
    assert api.post("/v1/datasets", files={"file": ("a", b"x" * LIMIT)}).status_code == 201
    said = api.post("/v1/datasets", files={"file": ("a", b"x" * (LIMIT + 1))})
    assert (said.status_code, said.json()["code"]) == (413, "payload_too_large")

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(4):
            yield b"x" * LIMIT

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    unsaid = api.post("/v1/datasets", content=endless(), headers=headers)
    assert (unsaid.status_code, unsaid.json()["code"]) == (413, "payload_too_large")


def test_forms_that_cannot_be_read_are_named(api: httpx.Client, subtests: pytest.Subtests) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\nx\r\n'
    file = part % (b"file", b'; filename="a"')
    cases: list[tuple[str, dict[str, str], bytes, int, str, str | None]] = [
        ("JSON", {"Content-Type": "application/json"}, b"{}", 415, "media_type_unsupported", None),
        ("nothing", {}, b"", 415, "media_type_unsupported", None),
        ("no boundary", {"Content-Type": "multipart/form-data"}, b"x", 400, "request_malformed", None),
        ("not a form", form, b"hello", 400, "request_malformed", None),
        ("cut short", form, file[:-10], 422, "request_invalid", "file"),
        ("no file", form, part % (b"name", b"") + b"--b--\r\n", 422, "request_invalid", "file"),
        ("file as field", form, part % (b"file", b"") + b"--b--\r\n", 422, "request_invalid", "file"),
        ("two files", form, file * 2 + b"--b--\r\n", 400, "request_malformed", None),
        ("unknown field", form, file + part % (b"colour", b"") + b"--b--\r\n", 422, "request_invalid", "colour"),
        ("long name", form, file + (part % (b"name", b"")).replace(b"x", b"x" * 121) + b"--b--\r\n", 422,
         "request_invalid", "name"),
        ("NUL in name", form, file + (part % (b"name", b"")).replace(b"x", b"a\0") + b"--b--\r\n", 422,
         "request_invalid", "name"),
        ("huge field", form, file + (part % (b"name", b"")).replace(b"x", b"x" * 100_000) + b"--b--\r\n", 400,
         "request_malformed", None),
    ]  # fmt: skip
    for name, headers, content, status, code, field in cases:
        with subtests.test(name):
            answer = api.post("/v1/datasets", content=content, headers=headers)
            problem = answer.json()
            assert (answer.status_code, problem["code"], problem["field"]) == (status, code, field), problem
