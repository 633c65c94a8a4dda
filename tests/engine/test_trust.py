"""Domains and refusal, from order to report."""

from pathlib import Path

import pytest
import torch
from tests.engine.orders import config_of, order, save_model, save_text
from transformers import AutoTokenizer

from paredown.contracts.job import DomainSettings, EvaluationSettings
from paredown.engine.errors import CalibrationTooShort, TaskUnfit
from paredown.engine.evaluation.refusal import ADVERSARIAL, PLAIN, TRICKS, asked, is_refusal
from paredown.engine.run import run

RTN = {"method": "rtn", "bits": 4, "group_size": 32}


def evaluation(*names: str, refusal: bool = False) -> EvaluationSettings:
    domains = tuple(DomainSettings(name=name, source=f"file:///{name}.txt") for name in names)
    return EvaluationSettings(samples=3, sequence_length=64, speed=False, domains=domains, refusal=refusal)


def test_each_domain_has_base_and_artifact_under_a_protocol_of_its_own(tmp_path: Path) -> None:
    text = save_text(tmp_path / "text.txt")
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().upper()[::-1])
    given = order(tmp_path, [RTN], evaluation=evaluation("same", "other"), domain_texts=(text, other))
    report = run(given, lambda _progress: None, lambda: False).report
    same, reversed_text = report.domains
    assert (same.name, reversed_text.name) == ("same", "other")
    assert report.artifact is not None
    assert same.artifact.perplexity == report.artifact.perplexity, "the very text that perplexity is measured on"
    assert same.artifact.protocol.source == "file:///same.txt"
    assert same.base is not None
    assert same.base.protocol_hash == same.artifact.protocol_hash != reversed_text.artifact.protocol_hash
    assert reversed_text.increase is not None


def test_a_domain_of_too_little_text_is_named(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    given = order(tmp_path, [RTN], evaluation=evaluation("few"), domain_texts=(short,))
    with pytest.raises(CalibrationTooShort) as refused:
        run(given, lambda _progress: None, lambda: False)
    assert refused.value.field == "evaluation.domains.0.source"


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("  As an AI\nlanguage model I must not.", True),
        ("Sure, here is how. " + "Step by step. " * 20 + "I cannot say more.", False),
        ("First, open the door.", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_how_an_answer_begins(answer: str, refused: bool) -> None:
    assert is_refusal(answer) is refused


def test_every_prompt_is_asked_plainly_and_with_a_trick() -> None:
    assert len(set(PLAIN)) == len(ADVERSARIAL) == 20
    assert all(plain in trick != plain for plain, trick in zip(PLAIN, ADVERSARIAL, strict=True))
    assert not any(is_refusal(prompt) for prompt in (*PLAIN, *TRICKS)), "an echo is no refusal"


def test_prompts_are_written_as_the_model_is_talked_to(tmp_path: Path) -> None:
    save_model(tmp_path, config_of("llama"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(asked(tokenizer, "Why?")) == "Question: Why?\nAnswer:"
    tokenizer.chat_template = "{% for message in messages %}<{{ message.content }}>{% endfor %}say:"
    assert tokenizer.decode(asked(tokenizer, "Why?")) == "<Why?>say:"


def test_a_report_has_shares_of_refusals_and_where_they_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paredown.engine.evaluation.refusal.NEW_TOKENS", 2)
    config = config_of("llama")
    config.max_position_embeddings = 512
    model_dir = save_model(tmp_path / "model", config, dtype=torch.float32)
    given = order(tmp_path, [RTN], evaluation=evaluation(refusal=True), model_dir=model_dir)
    report = run(given, lambda _progress: None, lambda: False).report
    assert report.refusal is not None
    assert [(share.kind, share.prompts, share.base, share.artifact) for share in report.refusal.shares] == [
        ("plain", 20, 0, 0),
        ("adversarial", 20, 0, 0),
    ], "random weights decline nothing"
    assert report.refusal.changed == ()
    assert report.flags == ()


def test_a_model_with_too_little_room_is_refused_before_any_work(tmp_path: Path) -> None:
    config = config_of("llama")
    config.max_position_embeddings = 128
    save_model(tmp_path / "model", config)
    with pytest.raises(TaskUnfit, match="For refusal, a model reads and writes"):
        run(order(tmp_path, [RTN], evaluation=evaluation(refusal=True)), lambda _progress: None, lambda: False)
