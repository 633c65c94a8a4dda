import hashlib
import json
from pathlib import Path

import numpy
import pytest
import torch
from tests.engine.orders import save_text
from tests.support.models import VOCABULARY, byte_tokenizer

from paredown.contracts.job import Calibration, EvaluationSettings
from paredown.engine import data
from paredown.engine.errors import CalibrationTooShort, CalibrationUnfit, NotAModel, TextUnusable


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    byte_tokenizer(directory)
    # transformers looks for the model's type before it reads a tokenizer.
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return save_text(tmp_path / "text.txt", 5000)


def calibrate(text: Path, model_dir: Path, vocab_size: int = VOCABULARY, **settings: int) -> data.TokenBlocks:
    tokenizer = data.load_tokenizer(model_dir, None)
    return data.calibration_blocks(text, Calibration(**settings), tokenizer, vocab_size, context=256)


def evaluate(text: Path, model_dir: Path, **settings: int) -> data.TokenBlocks:
    tokenizer = data.load_tokenizer(model_dir, None)
    return data.evaluation_blocks(text, EvaluationSettings(**settings), tokenizer, VOCABULARY, context=256)


def all_tokens(text: str, model_dir: Path) -> list[int]:
    return data.load_tokenizer(model_dir, None)(text, add_special_tokens=False)["input_ids"]


def test_calibration_takes_windows_in_the_documented_order(text: Path, model_dir: Path) -> None:
    blocks = calibrate(text, model_dir, samples=6, sequence_length=100, seed=3)

    tokens = all_tokens(text.read_text(), model_dir)
    order = sorted(range(len(tokens) // 100), key=lambda index: hashlib.sha256(f"3:{index}".encode()).digest())
    expected = [tokens[index * 100 : index * 100 + 100] for index in order[:6]]
    assert blocks.tokens_NT.tolist() == expected
    assert blocks.sha256 == hashlib.sha256(numpy.array(expected, dtype="<i8").tobytes()).hexdigest()


def test_another_seed_draws_other_windows_and_the_same_seed_the_same(text: Path, model_dir: Path) -> None:
    first = calibrate(text, model_dir, samples=6, sequence_length=100, seed=0)
    again = calibrate(text, model_dir, samples=6, sequence_length=100, seed=0)
    other = calibrate(text, model_dir, samples=6, sequence_length=100, seed=1)

    assert torch.equal(first.tokens_NT, again.tokens_NT)
    assert first.sha256 == again.sha256 != other.sha256


def test_evaluation_is_the_start_of_the_text(text: Path, model_dir: Path) -> None:
    blocks = evaluate(text, model_dir, samples=3, sequence_length=50)

    assert blocks.tokens_NT.flatten().tolist() == all_tokens(text.read_text(), model_dir)[:150]


def test_a_first_token_stands_before_one_token_of_text_less(text: Path, model_dir: Path) -> None:
    tokenizer = data.load_tokenizer(model_dir, None)
    tokens = all_tokens(text.read_text(), model_dir)

    evaluation = data.evaluation_blocks(
        text, EvaluationSettings(samples=2, sequence_length=50), tokenizer, VOCABULARY, 256, first_token=0
    )
    calibration = data.calibration_blocks(
        text, Calibration(samples=3, sequence_length=50), tokenizer, VOCABULARY, 256, first_token=0
    )

    assert evaluation.tokens_NT.tolist() == [[0, *tokens[:49]], [0, *tokens[49:98]]]
    windows = [[0, *tokens[start : start + 49]] for start in range(0, len(tokens) - 48, 49)]
    assert calibration.tokens_NT.shape == (3, 50)
    assert all(row in windows for row in calibration.tokens_NT.tolist())


def test_a_text_of_many_pieces_gives_the_same_tokens(
    text: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate(text, model_dir, samples=40, sequence_length=100)
    monkeypatch.setattr(data, "PIECE_CHARACTERS", 300)

    assert calibrate(text, model_dir, samples=40, sequence_length=100).sha256 == whole.sha256


def test_a_line_of_any_length_is_read_in_pieces(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut between words, it is the same tokens."""
    path = tmp_path / "line.txt"
    path.write_text("one two three " * 200)
    whole = evaluate(path, model_dir, samples=4, sequence_length=64)
    monkeypatch.setattr(data, "PIECE_CHARACTERS", 64)
    pieces = list(data._pieces(path, "text"))
    assert "".join(pieces) == path.read_text()
    assert max(map(len, pieces)) <= 128
    assert evaluate(path, model_dir, samples=4, sequence_length=64).sha256 == whole.sha256
    path.write_text("x" * 1000)
    assert list(map(len, data._pieces(path, "text"))) == [*[64] * 15, 40]


def test_a_text_that_is_too_long_to_read_whole_is_said_to_be(
    text: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(data, "CALIBRATION_CHARACTERS", 1000)

    blocks = calibrate(text, model_dir, samples=10, sequence_length=100)

    assert blocks.warnings == ("Calibration was drawn from the first 1,000 characters of its text.",)
    with pytest.raises(CalibrationTooShort):
        calibrate(text, model_dir, samples=20, sequence_length=100)


def test_too_little_text_says_how_much_there_is(tmp_path: Path, model_dir: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("x" * 130)

    with pytest.raises(CalibrationTooShort, match=r"130 tokens, enough for 2 sequences of 64; 4 were asked") as caught:
        calibrate(short, model_dir, samples=4, sequence_length=64)
    assert caught.value.field == "calibration.samples"
    with pytest.raises(CalibrationTooShort, match="130 tokens") as caught:
        evaluate(short, model_dir, samples=3, sequence_length=64)
    assert caught.value.field == "evaluation.samples"


def test_an_empty_text_is_too_short(tmp_path: Path, model_dir: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")

    with pytest.raises(CalibrationTooShort, match="0 tokens"):
        calibrate(empty, model_dir, samples=1, sequence_length=16)


def test_sequences_longer_than_the_context_are_refused(text: Path, model_dir: Path) -> None:
    with pytest.raises(CalibrationUnfit, match="at most 256 tokens") as caught:
        calibrate(text, model_dir, samples=1, sequence_length=257)
    assert caught.value.field == "calibration.sequence_length"
    with pytest.raises(CalibrationUnfit):
        evaluate(text, model_dir, samples=1, sequence_length=257)


def test_json_lines_are_their_texts_with_blank_lines_between(tmp_path: Path, model_dir: Path) -> None:
    documents = ["Dörte says:\n" + "a" * 40, "second " * 10]
    lines = tmp_path / "lines"
    lines.write_text("\n" + "\n\n".join(json.dumps({"text": text, "id": 1}) for text in documents))
    plain = tmp_path / "plain"
    plain.write_text("".join(f"{text}\n\n" for text in documents))

    assert evaluate(lines, model_dir, samples=5, sequence_length=20).sha256 == (
        evaluate(plain, model_dir, samples=5, sequence_length=20).sha256
    )


def test_plain_text_that_begins_with_json_stays_plain(tmp_path: Path, model_dir: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text('{"no": "document"}\nand so on and on\n')

    blocks = evaluate(plain, model_dir, samples=1, sequence_length=20)

    assert blocks.tokens_NT[0].tolist() == all_tokens('{"no": "document"}\na', model_dir)


@pytest.mark.parametrize("line", ['{"text": 3}', '{"other": "x"}', "[1]", "not json", '{"text": "x"', "[" * 100_000])
def test_a_garbled_line_is_named(tmp_path: Path, model_dir: Path, line: str) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"text": "fine"}\n' + line)

    with pytest.raises(TextUnusable, match="Line 2") as caught:
        evaluate(lines, model_dir, samples=1, sequence_length=16)
    assert caught.value.field == "evaluation.source"


def test_text_that_is_not_utf8_is_refused(tmp_path: Path, model_dir: Path) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes("für ".encode("latin-1") * 100)

    with pytest.raises(TextUnusable, match="not UTF-8"):
        calibrate(latin, model_dir, samples=1, sequence_length=16)


def test_a_tokenizer_of_another_model_is_found_out(text: Path, model_dir: Path) -> None:
    with pytest.raises(NotAModel, match="embeddings for 50 tokens"):
        calibrate(text, model_dir, vocab_size=50, samples=1, sequence_length=16)


def test_a_model_without_a_readable_tokenizer_is_not_a_model(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    with pytest.raises(NotAModel, match="tokenizer cannot be loaded"):
        data.load_tokenizer(model_dir, None)

    (model_dir / "tokenizer.json").unlink()
    (model_dir / "tokenizer_config.json").unlink()
    with pytest.raises(NotAModel, match="tokenizer cannot be loaded"):
        data.load_tokenizer(model_dir, None)


def test_code_that_comes_with_a_tokenizer_is_never_run(model_dir: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (model_dir / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    (model_dir / "tokenizer.json").unlink()
    (model_dir / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}})
    )

    with pytest.raises(NotAModel):
        data.load_tokenizer(model_dir, None)
    assert not trace.exists()


def test_the_protocol_hash_pins_tokens_and_number_type(text: Path, model_dir: Path) -> None:
    settings = EvaluationSettings(samples=3, sequence_length=50)
    blocks = evaluate(text, model_dir, samples=3, sequence_length=50)
    protocol = data.protocol(settings, blocks, "float32")
    shorter = evaluate(text, model_dir, samples=2, sequence_length=50)

    assert (protocol.samples, protocol.sequence_length, protocol.tokens_sha256) == (3, 50, blocks.sha256)
    hashes = {
        data.protocol_hash(protocol),
        data.protocol_hash(data.protocol(settings, blocks, "bfloat16")),
        data.protocol_hash(data.protocol(settings, shorter, "float32")),
    }
    assert len(hashes) == 3
