"""Settings, budgets and flags of tasks."""

from typing import Any

import pytest
from pydantic import ValidationError

from paredown.contracts.gate import judge
from paredown.contracts.job import Budget, EvaluationSettings, JobSpec, TaskSettings
from paredown.contracts.report import (
    DomainResult,
    Evaluation,
    Flag,
    Protocol,
    Report,
    TaskGroup,
    TaskMetric,
    TaskProtocol,
    TaskResult,
    Verdict,
)
from paredown.contracts.tasks import TASKS, TaskName
from paredown.contracts.trust import flags

ROWS = "file:///rows.jsonl"
HASH = "0" * 64


def result(
    name: TaskName, base: float | None, artifact: float, *, half: float = 0.0, groups: tuple[TaskGroup, ...] = ()
) -> TaskResult:
    """`half` the width of the difference's interval."""
    protocol = TaskProtocol(task=name, definition_sha256=HASH, data_sha256=HASH, harness="lm_eval 0", dtype="float32")
    known: dict[str, Any] = {}
    if base is not None:
        difference = artifact - base
        verdict = "same" if abs(difference) <= half else ("better" if difference > 0 else "worse")
        known = {
            "base": base,
            "base_stderr": 0.0,
            "difference": difference,
            "low": difference - half,
            "high": difference + half,
            "verdict": verdict,
        }
    metric = TaskMetric(
        name=TASKS[name].metric, higher_is_better=TASKS[name].is_accuracy, artifact=artifact, artifact_stderr=0, **known
    )
    return TaskResult(
        name=name,
        source=ROWS,
        protocol=protocol,
        protocol_hash=HASH,
        rows=100,
        metrics=(metric,),
        groups=groups,
        runtime="block stream",
        seconds=1,
    )


def report(*tasks: TaskResult) -> Report:
    return Report(base=None, artifact=None, size_bytes=1, base_bytes=2, sparsity=0, average_bits=4, tasks=tasks)


def evaluation(perplexity: float) -> Evaluation:
    protocol = Protocol(source=ROWS, tokens_sha256=HASH, samples=1, sequence_length=16, dtype="float32")
    return Evaluation(
        protocol=protocol, protocol_hash=HASH, perplexity=perplexity, predicted_tokens=15, device="cpu", seconds=1
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "lambada"}, "knows no file on the hub for lambada"),
        ({"name": "blimp", "source": ROWS, "num_fewshot": 2, "fewshot_source": ROWS}, "measured without examples"),
        ({"name": "piqa", "source": ROWS, "num_fewshot": 2}, "go together"),
        ({"name": "piqa", "source": ROWS, "fewshot_source": ROWS}, "go together"),
        ({"name": "squad", "source": ROWS}, "lambada"),
    ],
)
def test_settings_that_do_not_fit_their_task_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TaskSettings.model_validate(settings)


def test_rows_come_from_the_hub_where_pare_knows_the_file() -> None:
    task = TaskSettings(name="mmlu")
    assert EvaluationSettings(tasks=(task,)).rows() == {"evaluation.tasks.0.source": TASKS["mmlu"].source}


def test_a_task_or_a_domain_is_named_once() -> None:
    with pytest.raises(ValidationError, match="tasks has piqa more than once"):
        EvaluationSettings.model_validate({"tasks": [{"name": "piqa", "source": ROWS}] * 2})
    with pytest.raises(ValidationError, match="two domains have the same name"):
        EvaluationSettings.model_validate({"domains": [{"name": "German", "source": ROWS}] * 2})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": {"max_task_drop": 0.02}}, r"max_task_drop\n  it needs a task"),
        (
            {
                "budget": {"max_task_drop": 0.02},
                "evaluation": {"tasks": [{"name": "crows_pairs", "source": ROWS}]},
            },
            r"max_task_drop\n  it needs a task",
        ),
        ({"format": "gguf", "evaluation": {"tasks": [{"name": "gsm8k"}]}}, "gsm8k reads what a model writes"),
    ],
)
def test_a_job_whose_tasks_cannot_be_had_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JobSpec.model_validate({"model": "hf://a/b", "recipe": [{"method": "rtn"}], **changes})


def test_the_budget_takes_the_worst_task_at_the_worse_end_of_its_interval() -> None:
    measured = report(result("lambada", 0.5, 0.49, half=0.005), result("piqa", 0.7, 0.7, half=0.03))
    gate = judge(Budget(max_task_drop=0.03), measured)
    assert gate.verdict is Verdict.PASSED
    [check] = gate.checks
    assert (check.figure, check.value) == ("task_drop", pytest.approx(0.03))
    # No drop was measured, but so few rows do not show that there is none.
    assert judge(Budget(max_task_drop=0.02), measured).verdict is Verdict.MISSED


def test_bias_is_no_accuracy_to_a_budget() -> None:
    measured = report(result("lambada", 0.5, 0.5), result("crows_pairs", 0.6, 0.9))
    assert judge(Budget(max_task_drop=0.0), measured).verdict is Verdict.PASSED


@pytest.mark.parametrize("tasks", [(), (result("lambada", None, 0.5),)])
def test_a_figure_that_was_not_measured_is_missed(tasks: tuple[TaskResult, ...]) -> None:
    gate = judge(Budget(max_task_drop=0.02), report(*tasks))
    assert gate.verdict is Verdict.MISSED
    assert gate.checks[0].value is None


def kinds(found: tuple[Flag, ...]) -> list[tuple[str, str]]:
    return [(flag.kind, flag.subject) for flag in found]


def test_a_task_is_flagged_where_it_is_worse_by_more_than_the_threshold() -> None:
    tasks = (
        result("lambada", 0.5, 0.44, half=0.01),
        result("piqa", 0.7, 0.66, half=0.01),
        result("mmlu", 0.4, 0.3, half=0.2),
        result("blimp", None, 0.1),
    )
    assert kinds(flags(tasks, (), None, None)) == [("task", "LAMBADA")]


def test_bias_is_flagged_where_it_moves_away_from_one_half() -> None:
    groups = (
        TaskGroup(name="age", rows=80, base=0.5, artifact=0.65),
        TaskGroup(name="disability", rows=12, base=0.5, artifact=0.9),
        TaskGroup(name="religion", rows=80, base=0.7, artifact=0.5),
    )
    assert kinds(flags((result("crows_pairs", 0.55, 0.6, groups=groups),), (), None, None)) == [
        ("bias", "all pairs"),
        ("bias", "age"),
    ]
    # Away from one half on the other side is bias as well; towards it is not.
    assert kinds(flags((result("crows_pairs", 0.5, 0.4),), (), None, None)) == [("bias", "all pairs")]
    assert flags((result("crows_pairs", 0.7, 0.5),), (), None, None) == ()


def test_a_domain_is_flagged_where_it_is_hurt_more_than_the_evaluation_text() -> None:
    domains = (
        DomainResult(name="German", base=evaluation(10), artifact=evaluation(15)),
        DomainResult(name="law", base=evaluation(10), artifact=evaluation(12)),
    )
    found = flags((), domains, evaluation(20), evaluation(23))
    assert kinds(found) == [("domain", "German")]
    assert found[0].change == pytest.approx(1.5 / 1.15 - 1)
    assert flags((), domains, None, evaluation(23)) == ()
