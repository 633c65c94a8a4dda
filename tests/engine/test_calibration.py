"""Token blocks that one run drew and another takes, and text that is held out from them."""

import json
import random
from pathlib import Path
from string import ascii_letters

import numpy
import pytest
from tests.engine.orders import config_of, file_hashes, order, save_model
from tests.support.models import VOCABULARY

from paredown.contracts.job import Calibration, EvaluationSettings
from paredown.contracts.work import CALIBRATION_FILE, EngineResult, WorkOrder
from paredown.engine import data
from paredown.engine.calibration import tokenizer_sha256
from paredown.engine.errors import CalibrationTooShort, CalibrationUnfit, OrderInvalid, TextUnusable, TokenizerDiffers
from paredown.engine.held_out import OVERLAP_TOKENS, ngrams, overlapping
from paredown.engine.inputs import read_inputs, resolved_format
from paredown.engine.run import run

WANDA = {"method": "wanda", "sparsity": 0.5}
STORED = Calibration(source="calibration://6f1fd3ce-6f5c-4b0a-8e43-3d3f7a1b9a55", samples=4, sequence_length=64, seed=7)


def carry_out(order: WorkOrder) -> EngineResult:
    return run(order, lambda _progress: None, lambda: False)


def letters(number: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(ascii_letters, k=number))


def taking(root: Path, first: EngineResult, tokens: Path, **changes: object) -> WorkOrder:
    """A second order, on the tokens of a first run."""
    assert first.drawn is not None
    values = {
        "calibration": STORED,
        "calibration_text": None,
        "calibration_tokens": tokens,
        "calibration_tokenizer_sha256": first.drawn.tokenizer_sha256,
        "work_dir": root / "again",
        "output_dir": root / "made",
        **changes,
    }
    return order(root, [WANDA], **values)


@pytest.fixture
def first(tmp_path: Path) -> EngineResult:
    return carry_out(order(tmp_path, [WANDA], calibration=Calibration(samples=4, sequence_length=64, seed=7)))


def test_stored_tokens_make_the_same_bytes_without_the_text(tmp_path: Path, first: EngineResult) -> None:
    tokens = tmp_path / "work" / CALIBRATION_FILE
    stored = numpy.load(tokens, allow_pickle=False)
    assert (stored.dtype, stored.shape) == (numpy.int32, (4, 64))
    second = carry_out(taking(tmp_path, first, tokens))
    assert file_hashes(tmp_path / "made") == file_hashes(tmp_path / "out")
    assert second.calibration_tokens_sha256 == first.calibration_tokens_sha256
    assert second.drawn is None, "they are kept already"


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, first: EngineResult) -> None:
    other = tmp_path / "other"
    save_model(other, config_of("llama"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    # The same pieces of text, two of them under each other's number.
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    asked = taking(tmp_path, first, tmp_path / "work" / CALIBRATION_FILE, model_dir=other)
    with pytest.raises(TokenizerDiffers) as caught:
        read_inputs(asked, resolved_format(asked))
    assert caught.value.field == "calibration.source"


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        (numpy.zeros((4, 64), dtype=object), TextUnusable),
        (numpy.zeros((4, 64), dtype=numpy.float32), TextUnusable),
        (numpy.zeros((2, 64), dtype=numpy.int32), TextUnusable),
        (numpy.full((4, 64), VOCABULARY, dtype=numpy.int32), TokenizerDiffers),
        (numpy.full((4, 64), -1, dtype=numpy.int32), TokenizerDiffers),
        (numpy.zeros((4, 512), dtype=numpy.int32), CalibrationUnfit),
        (b"no array", TextUnusable),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, stored: "numpy.ndarray[object, object] | bytes", error: type[Exception]
) -> None:
    order(tmp_path, [WANDA])
    path = tmp_path / "stored.npy"
    if isinstance(stored, bytes):
        path.write_bytes(stored)
    else:
        numpy.save(path, stored, allow_pickle=True)
    length = 512 if error is CalibrationUnfit else 64
    tokenizer = data.load_tokenizer(tmp_path / "model", None)
    asked = order(
        tmp_path,
        [WANDA],
        calibration=STORED.model_copy(update={"sequence_length": length}),
        calibration_text=None,
        calibration_tokens=path,
        calibration_tokenizer_sha256=tokenizer_sha256(tokenizer),
    )
    with pytest.raises(error):
        read_inputs(asked, resolved_format(asked))


def test_text_of_the_evaluation_is_not_calibrated_on(tmp_path: Path) -> None:
    # With a token for each byte, a window is 64 letters; the same 13 in a row come twice by no chance.
    evaluated, own = letters(300, seed=1), letters(1280, seed=2)
    (tmp_path / "evaluated.txt").write_text(evaluated)
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(own[:640] + evaluated[:192] + own[640:])
    settings = Calibration(samples=20, sequence_length=64, exclude_held_out=True)
    held_out = EvaluationSettings(samples=3, sequence_length=64, speed=False)
    asked = order(
        tmp_path,
        [WANDA],
        calibration=settings,
        calibration_text=mixed,
        evaluation=held_out,
        evaluation_text=tmp_path / "evaluated.txt",
    )
    inputs = read_inputs(asked, resolved_format(asked))
    assert inputs.calibration is not None
    assert inputs.calibration.held_out_windows == 3
    tokens = inputs.tokenizer(evaluated[:192], add_special_tokens=False)["input_ids"]
    drawn = [row[at : at + OVERLAP_TOKENS] for row in inputs.calibration.tokens_NT.tolist() for at in range(52)]
    assert not any(tokens[at : at + OVERLAP_TOKENS] in drawn for at in range(len(tokens) - OVERLAP_TOKENS))

    one_more = asked.model_copy(update={"calibration": settings.model_copy(update={"samples": 21})})
    with pytest.raises(CalibrationTooShort, match=r"23 windows of 64 tokens, and 3 of them.*20 are left"):
        read_inputs(one_more, resolved_format(one_more))
    report = carry_out(asked).report
    assert report.held_out_windows == 3


def test_nothing_is_kept_apart_from_an_evaluation_that_is_not_there(tmp_path: Path) -> None:
    settings = Calibration(samples=4, sequence_length=64, exclude_held_out=True)
    asked = order(tmp_path, [WANDA], calibration=settings, evaluation=None, evaluation_text=None)
    with pytest.raises(OrderInvalid, match="exclude_held_out"):
        read_inputs(asked, resolved_format(asked))


def test_thirteen_tokens_in_a_row_overlap_and_twelve_do_not() -> None:
    held_out = ngrams(numpy.arange(100, 164)[None])
    windows = numpy.arange(64)[None].repeat(3, axis=0)
    windows[1, 30:42] = numpy.arange(110, 122)
    windows[2, 30:43] = numpy.arange(110, 123)
    assert overlapping(windows, [held_out]).tolist() == [False, False, True]
    assert overlapping(windows, []).tolist() == [False, False, False]
