"""Side by side: only what differs of the settings, and no two figures on a line that do not compare."""

from io import StringIO
from uuid import uuid4

from rich.console import Console
from tests.client.conftest import make_manifest
from tests.core.builders import make_speed

from paredown.client import comparison, render_artifacts
from paredown.contracts.artifact import Manifest
from paredown.contracts.job import EvaluationSettings, content_hash
from paredown.contracts.recipes import Gptq, Rtn
from paredown.contracts.report import Energy, TaskMetric, TaskProtocol, TaskResult


def manifest(**changes: object) -> Manifest:
    return make_manifest(uuid4(), {"model.safetensors": b"x"}, None).model_copy(update=changes)


def test_only_what_differs_is_told() -> None:
    lines = {line.name: line.values for line in comparison.settings([manifest(), manifest(recipe=(Rtn(bits=3),))])}
    assert lines == {"stage 1 · bits": ("4", "3")}
    assert comparison.settings([manifest(), manifest()]) == []


def test_what_only_one_recipe_has_is_absent_from_the_other() -> None:
    lines = comparison.settings([manifest(recipe=(Rtn(),)), manifest(recipe=(Gptq(),))])
    values = {line.name: line.values for line in lines}
    assert values["stage 1 · method"] == ("rtn", "gptq")
    assert values["stage 1 · damping"] == (None, str(Gptq().damping))
    assert "stage 1 · bits" not in values


def test_perplexities_of_two_protocols_are_two_lines() -> None:
    one, two = manifest(), manifest()
    assert one.report.artifact
    protocol = one.report.artifact.protocol.model_copy(update={"samples": 9})
    hashed = content_hash(protocol.model_dump(mode="json"))
    measured = one.report.artifact.model_copy(
        update={"protocol": protocol, "protocol_hash": hashed, "perplexity": 30.0}
    )
    other = two.model_copy(update={"report": two.report.model_copy(update={"artifact": measured})})

    def values(unit: str, *manifests: Manifest) -> list[tuple[object, ...]]:
        return [line.values for line in comparison.figures(manifests) if line.unit == unit]

    assert values("perplexity", one, two) == [(22.0, 22.0)]
    assert values("perplexity", one, other) == [(22.0, None), (None, 30.0)]
    assert [value.count(None) for value in values("change", one, other)] == [1, 1], "nor do their rises compare"


def test_a_figure_that_nobody_has_is_no_line() -> None:
    names = [line.name for line in comparison.figures([manifest(), manifest()])]
    assert "Size" in names
    assert "Decode speed" not in names


def test_energy_is_told_where_it_was_counted_and_nowhere_else() -> None:
    energy = Energy(
        joules_per_token=0.75, batch_joules_per_token=0.2, sequences=8, repeats=3, counter="rapl", covers="processor"
    )
    without = manifest(report=manifest().report.model_copy(update={"speeds": {"artifact": make_speed(20)}}))
    timed = make_speed(20).model_copy(update={"energy": energy})
    counted = manifest(report=without.report.model_copy(update={"speeds": {"artifact": timed}}))

    def told(one: Manifest) -> str:
        console = Console(width=200, record=True, file=StringIO())
        console.print(*render_artifacts.speeds(one.report))
        return console.export_text()

    assert "J/token" not in told(without)
    assert {"0.75", "0.2", "J/token"} <= set(told(counted).split())
    assert "Energy is of processor" in told(counted)
    lines = {line.name: line.values for line in comparison.figures([without, counted])}
    assert lines["Energy of a token"] == (None, 0.75)
    assert "energy" not in without.report.model_dump_json(), "reports without one are stored as before"
    assert Manifest.model_validate_json(counted.model_dump_json()) == counted


def task(protocol_hash: str, *, limit: int | None = None, difference: float | None = -0.05) -> TaskResult:
    protocol = TaskProtocol(
        task="blimp",
        definition_sha256="1" * 64,
        data_sha256="2" * 64,
        harness="lm_eval 0.4.13",
        dtype="float32",
        limit=limit,
    )
    metric = TaskMetric(
        name="acc",
        higher_is_better=True,
        artifact=0.75,
        artifact_stderr=0.01,
        difference=difference,
        low=-0.08,
        high=-0.02,
    )
    return TaskResult(
        name="blimp",
        source="dataset://rows",
        protocol=protocol,
        protocol_hash=protocol_hash,
        rows=limit or 67000,
        metrics=(metric,),
        runtime="block stream on cpu",
        seconds=1.0,
    )


def with_tasks(*results: TaskResult) -> Manifest:
    one = manifest()
    return one.model_copy(update={"report": one.report.model_copy(update={"tasks": results})})


def test_a_task_measured_in_two_ways_is_two_lines() -> None:
    whole, part = task("a" * 64), task("b" * 64, limit=100)
    [line] = comparison.tasks([with_tasks(whole), with_tasks(whole), with_tasks()])
    assert (line.name, line.metric, line.rows) == ("BLiMP", "acc", 67000)
    assert [value.artifact if value else None for value in line.values] == [0.75, 0.75, None]
    lines = comparison.tasks([with_tasks(whole), with_tasks(part)])
    assert [[value is not None for value in line.values] for line in lines] == [[True, False], [False, True]]
    assert lines[0].name != lines[1].name
    assert "100 rows" in lines[1].name
    assert comparison.tasks([with_tasks(), with_tasks()]) == []


def test_switches_are_yes_or_no_and_tasks_have_their_names() -> None:
    one = manifest(evaluation=EvaluationSettings())
    settings = {"speed": False, "tasks": [{"name": "blimp", "source": "dataset://x", "limit": 7}]}
    other = one.model_copy(update={"evaluation": EvaluationSettings.model_validate(settings)})
    lines = {line.name: line.values for line in comparison.settings([one, other])}
    assert lines["evaluation · speed"] == ("yes", "no")
    assert lines["evaluation · tasks · blimp"] == (None, "yes")
    assert lines["evaluation · tasks · blimp · limit"] == (None, "7")
