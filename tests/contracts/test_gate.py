"""The gate: each term against the figure that it limits, and no pass for what was not measured."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.core.builders import make_evaluation, make_speed

from paredown.contracts.gate import TERMS, judge, unmeasurable
from paredown.contracts.job import BUDGET_PRESETS, Budget, JobSpec
from paredown.contracts.report import (
    Cost,
    Divergence,
    Figure,
    Generation,
    Report,
    RuntimeProof,
    Speed,
    TaskMetric,
    TaskProtocol,
    TaskResult,
    Verdict,
)

# Each figure of the report below.
VALUES: dict[Figure, float] = {
    "size_ratio": 0.4,
    "perplexity_increase": 0.1,
    "mean_divergence": 0.05,
    "p99_divergence": 0.6,
    "top1_agreement": 0.9,
    "answers_lost": 0.04,
    "task_drop": 0.03,
    "repetition_increase": 0.125,
    "decode_speedup": 1.5,
    "runtime_memory_bytes": 8e8,
    "cost_per_million_tokens": 0.7,
}


def speed(decode: float) -> Speed:
    return make_speed(decode).model_copy(update={"peak_memory_bytes": 800_000_000})


def report(**changes: Any) -> Report:
    divergence = Divergence(
        protocol_hash="b" * 64,
        predicted_tokens=15,
        mean=0.05,
        median=0.02,
        p90=0.2,
        p99=0.6,
        maximum=1,
        top1_agreement=0.9,
        answers_lost=0.04,
        answers_won=0.01,
    )
    generations = {
        role: Generation(prompts=4, new_tokens=64, repetition=repetition)
        for role, repetition in (("base", 0.25), ("artifact", 0.375))
    }
    proof = RuntimeProof(runtime="transformers", version="5", loads=True, generations=generations)
    accuracy = TaskMetric(
        name="acc", higher_is_better=True, base=0.5, artifact=0.49, artifact_stderr=0.01, low=-0.03, high=0.01
    )
    protocol = TaskProtocol(
        task="lambada", definition_sha256="c" * 64, data_sha256="d" * 64, harness="lm-eval 0", dtype="float32"
    )
    task = TaskResult(
        name="lambada",
        source="file:///rows",
        protocol=protocol,
        protocol_hash="e" * 64,
        rows=100,
        metrics=(accuracy,),
        runtime="transformers",
        seconds=1,
    )
    whole: dict[str, Any] = {
        "tasks": (task,),
        "base": make_evaluation(20),
        "artifact": make_evaluation(22),
        "divergence": divergence,
        "size_bytes": 40,
        "base_bytes": 100,
        "sparsity": 0,
        "average_bits": 4,
        "speeds": {"base": speed(10), "artifact": speed(15)},
        "runtimes": (proof,),
        "cost": Cost(currency="USD", price_per_hour=1, job_seconds=1, job=1, artifact_per_million_tokens=0.7),
    }
    return Report(**whole | changes)


def test_every_term_of_a_budget_is_judged() -> None:
    assert {term.field for term in TERMS.values()} == set(Budget.model_fields)
    assert VALUES.keys() == TERMS.keys()


@pytest.mark.parametrize("figure", VALUES)
def test_a_term_is_met_on_its_limit_and_missed_beyond_it(figure: Figure) -> None:
    term, value = TERMS[figure], VALUES[figure]
    step = -1 if term.least else 1
    for limit, passed in ((value * (1 + step * 0.01), True), (value * (1 - step * 0.01), False)):
        gate = judge(Budget(**{term.field: round(limit) if figure == "runtime_memory_bytes" else limit}), report())
        [check] = gate.checks
        assert check.value == pytest.approx(value)
        assert check.bound == ("least" if term.least else "most")
        assert check.passed is passed
        assert gate.verdict is (Verdict.PASSED if passed else Verdict.MISSED)


@pytest.mark.parametrize("figure", [figure for figure in VALUES if figure != "size_ratio"])
def test_what_was_not_measured_is_missed_and_said(figure: Figure) -> None:
    bare = report(tasks=(), base=None, artifact=None, divergence=None, speeds={}, runtimes=(), cost=None)
    [check] = judge(Budget(**{TERMS[figure].field: 1}), bare).checks
    assert (check.value, check.passed) == (None, False)
    assert check.detail is not None
    assert "not measured" in check.detail


def test_a_figure_that_is_not_finite_is_missed() -> None:
    broken = report(artifact=make_evaluation(float("inf")))
    assert judge(Budget(max_perplexity_increase=100), broken).verdict is Verdict.MISSED
    nothing = report(divergence=report().divergence.model_copy(update={"mean": float("nan")}))  # type: ignore[union-attr]
    assert judge(Budget(max_mean_divergence=100), nothing).verdict is Verdict.MISSED


def test_one_miss_among_many_is_a_miss() -> None:
    gate = judge(Budget(max_size_ratio=0.5, max_perplexity_increase=0.5, max_mean_divergence=0.01), report())
    assert [check.passed for check in gate.checks] == [True, True, False]
    assert gate.verdict is Verdict.MISSED


def test_a_budget_needs_a_term() -> None:
    with pytest.raises(ValidationError, match="at least one term"):
        Budget()


def test_what_cannot_be_measured_is_known_before_the_work() -> None:
    everything = Budget(**{term.field: 1 for term in TERMS.values()})

    def fields(**facts: bool) -> set[str]:
        return {
            name
            for name, _ in unmeasurable(everything, **{"evaluated": True, "speed": True, "base_is_here": True} | facts)
        }

    assert fields() == set()
    timed = {"min_decode_speedup", "max_runtime_memory_bytes", "max_cost_per_million_tokens"}
    compared = {"max_mean_divergence", "max_p99_divergence", "min_top1_agreement", "max_answers_lost"}
    compared |= {"max_task_drop"}
    assert fields(speed=False) == timed | {"max_repetition_increase"}
    assert fields(base_is_here=False) == compared | {"max_repetition_increase", "min_decode_speedup"}
    assert fields(evaluated=False) == fields(speed=False) | compared | {"max_perplexity_increase"}
    assert list(unmeasurable(Budget(max_size_ratio=1), evaluated=False, speed=False, base_is_here=False)) == []


def test_a_job_keeps_the_terms_of_a_preset() -> None:
    spec = JobSpec.model_validate({"model": "pkg://a/b", "recipe": [{"method": "rtn"}], "budget": "default"})
    assert spec.budget == BUDGET_PRESETS["default"]
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match="there is no budget 'lax'"):
        JobSpec.model_validate({"model": "pkg://a/b", "recipe": [{"method": "rtn"}], "budget": "lax"})


def test_a_budget_of_old_terms_is_written_as_the_release_before_wrote_it() -> None:
    """A worker of that release refuses fields that it does not know, and may serve beside this one."""
    assert Budget(max_size_ratio=0.5).model_dump(mode="json") == {
        "max_size_ratio": 0.5,
        "max_perplexity_increase": None,
    }


@pytest.mark.parametrize(
    ("perplexity", "mean", "agreement", "verdict"),
    [
        pytest.param(1.092, 0.113, 0.835, Verdict.PASSED, id="gptq-4"),
        pytest.param(6.38, 1.89, 0.348, Verdict.MISSED, id="rtn-3"),
        pytest.param(2.29, 0.865, 0.559, Verdict.MISSED, id="shortgpt-20%"),
        # Perplexity hardly moves, and every fourth answer is another.
        pytest.param(1.05, 0.1, 0.74, Verdict.MISSED, id="other answers"),
    ],
)
def test_the_default_budget_on_figures_of_the_packaged_model(
    perplexity: float, mean: float, agreement: float, verdict: Verdict
) -> None:
    """Those of docs/evaluation.md; the last is made up."""
    divergence = report().divergence
    assert divergence is not None
    changed = divergence.model_copy(update={"mean": mean, "top1_agreement": agreement})
    measured = report(artifact=make_evaluation(20 * perplexity), divergence=changed)
    assert judge(BUDGET_PRESETS["default"], measured).verdict is verdict
