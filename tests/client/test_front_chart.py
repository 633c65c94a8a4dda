"""The trade-off chart tells the truth about the front, on the page and as a file."""

import csv
from io import StringIO
from uuid import uuid4

import pytest

from paredown.client.front_chart import (
    AXES,
    BASE,
    FAMILY_COLOURS,
    BudgetLines,
    budget_lines,
    csv_text,
    front_chart,
    image,
    points,
)
from paredown.contracts.artifact import Front, FrontPoint
from paredown.contracts.report import Verdict

FAMILIES = {"rtn": "quantization", "gptq": "quantization", "wanda": "pruning"}


def point(name, perplexity, size_bytes, *, speed=None, on_front=False, verdict=None, methods=("gptq",)):
    return FrontPoint(
        artifact_id=None if name == "base" else uuid4(),
        name=name,
        methods=() if name == "base" else methods,
        perplexity=perplexity,
        size_bytes=size_bytes,
        decode_tokens_per_second=speed,
        cost_per_million_tokens=None,
        verdict=verdict,
        on_front=on_front,
    )


def front(*points, cost_axis="size_bytes"):
    return Front(model="m", model_fingerprint="a" * 64, protocol_hash="b" * 64, cost_axis=cost_axis, points=points)


POINTS = (
    point("base", 20.0, 1000, speed=40.0, on_front=True),
    point("good", 22.0, 300, speed=50.0, on_front=True, verdict=Verdict.PASSED),
    point("worse", 30.0, 400, methods=("wanda", "gptq"), verdict=Verdict.MISSED),
)


def test_points_are_compared_with_the_base():
    shown = {point.name: point for point in points(front(*POINTS), FAMILIES)}
    assert shown["good"].perplexity_change == pytest.approx(0.1)
    assert shown["good"].size_ratio == pytest.approx(0.3)
    assert shown["base"].perplexity_change is None
    assert (shown["base"].verdict, shown["base"].id) == (BASE, "")
    assert shown["worse"].family == "pruning + quantization"


def test_points_without_a_figure_for_the_axis_are_not_placed():
    shown = points(front(*POINTS, cost_axis="decode_tokens_per_second"), FAMILIES)
    assert [point.name for point in shown] == ["base", "good"]


@pytest.mark.parametrize(
    ("cost_axis", "step"), [("size_bytes", "step-after"), ("decode_tokens_per_second", "step-before")]
)
def test_the_line_joins_the_front_only_and_never_slopes(cost_axis, step):
    shown = points(front(*POINTS, cost_axis=cost_axis), FAMILIES)
    drawn = front_chart(shown, cost_axis, BudgetLines(), dark=False)
    line = drawn["layer"][0]
    assert line["mark"]["interpolate"] == step
    assert {value["name"] for value in drawn["datasets"]["front"]} == {"base", "good"}


def test_missed_budgets_have_a_shape_and_dominated_points_are_grey():
    shown = points(front(*POINTS), FAMILIES)
    drawn = front_chart(shown, "size_bytes", BudgetLines(), dark=False)
    marks = drawn["layer"][1]
    scale = marks["encoding"]["shape"]["scale"]
    shapes = dict(zip(scale["domain"], scale["range"], strict=True))
    assert shapes["budget missed"] != shapes["budget met"]
    fills = {value["name"]: value["fill"] for value in drawn["datasets"]["points"]}
    assert fills["good"] == FAMILY_COLOURS["quantization"]
    assert fills["worse"] not in FAMILY_COLOURS.values()
    assert drawn["datasets"]["points"][0]["name"] == "worse", "it would hide others"


def test_broken_models_do_not_flatten_the_good_ones():
    shown = points(front(*POINTS, point("broken", 9000.0, 200)), FAMILIES)
    drawn = front_chart(shown, "size_bytes", BudgetLines(), dark=False)
    y = drawn["layer"][1]["encoding"]["y"]
    assert y["scale"]["type"] == "log"
    # However broken, it lies at the upper edge; its figure stands in the tooltip and the table.
    edge = 10 * min(one.perplexity for one in shown)
    placed = {value["name"]: value["drawn"] for value in drawn["datasets"]["points"]}
    assert placed["broken"] == pytest.approx(edge)
    assert placed["good"] == next(one.perplexity for one in shown if one.name == "good")
    assert y["title"] == ["Perplexity (lower is better, logarithmic)", "beyond 200 at the upper edge"]
    assert next(value["perplexity"] for value in drawn["datasets"]["points"] if value["name"] == "broken") == 9000.0


def test_a_budget_above_the_edge_moves_the_edge():
    shown = points(front(*POINTS, point("broken", 9000.0, 200)), FAMILIES)
    drawn = front_chart(shown, "size_bytes", BudgetLines(perplexity=10_000.0), dark=False)
    assert {value["perplexity"] == value["drawn"] for value in drawn["datasets"]["points"]} == {True}
    assert len(drawn["layer"][1]["encoding"]["y"]["title"]) == 1


def test_every_axis_has_its_column():
    whole = point("whole", 22.0, 300, speed=50.0).model_copy(
        update={"time_to_first_token_seconds": 0.25, "peak_memory_bytes": 2_000_000, "cost_per_million_tokens": 0.5}
    )
    placed = {axis: points(front(whole, cost_axis=axis), FAMILIES)[0] for axis in AXES}
    assert {axis: getattr(placed[axis], AXES[axis].column) for axis in AXES} == {
        "size_bytes": 0.0003,
        "decode_tokens_per_second": 50.0,
        "time_to_first_token_seconds": 250.0,
        "peak_memory_bytes": 2.0,
        "cost_per_million_tokens": 0.5,
    }


def rules(drawn):
    return [layer["data"]["values"][0] for layer in drawn["layer"] if layer["mark"]["type"] == "rule"]


def test_a_budget_lies_where_it_would_be_missed():
    view = front(*POINTS)
    budget = budget_lines(view, {"perplexity_increase": 0.15, "size_ratio": 0.35, "of a later release": 1.0})
    assert budget == BudgetLines(perplexity=pytest.approx(23.0), cost=pytest.approx(0.00035))
    shown = points(view, FAMILIES)
    met = {point.name for point in shown if point.perplexity <= budget.perplexity and point.size_mb <= budget.cost}
    assert met == {"good"}
    drawn = front_chart(shown, "size_bytes", budget, dark=False)
    assert [set(rule) for rule in rules(drawn)] == [{"size_mb", "what"}, {"drawn", "what"}]
    # A share of the bytes says nothing of speed, and without a base nothing is known.
    assert budget_lines(front(*POINTS, cost_axis="decode_tokens_per_second"), {"size_ratio": 0.35}) == BudgetLines()
    assert budget_lines(front(POINTS[1]), {"size_ratio": 0.35}) == BudgetLines()
    assert rules(front_chart(shown, "size_bytes", BudgetLines(), dark=False)) == []


def test_every_term_has_its_axis():
    limits = {"decode_speedup": 1.5, "runtime_memory_bytes": 3e6, "cost_per_million_tokens": 1.0}
    places = {axis: budget_lines(front(*POINTS, cost_axis=axis), limits).cost for axis in AXES}
    assert places == {
        "size_bytes": None,
        "decode_tokens_per_second": 60.0,
        "time_to_first_token_seconds": None,
        "peak_memory_bytes": 3.0,
        "cost_per_million_tokens": None,
    }


def test_the_chart_is_a_file_too():
    shown = points(front(*POINTS), FAMILIES)
    chart = front_chart(shown, "size_bytes", BudgetLines(perplexity=25.0), dark=False)
    svg = image(chart, "svg").decode()
    assert svg.startswith("<svg")
    assert "Size of the weights, MB" in svg
    assert image(chart, "png").startswith(b"\x89PNG")
    lines = list(csv.DictReader(StringIO(csv_text(shown))))
    assert [(line["name"], line["size_mb"], line["on_front"]) for line in lines] == [
        ("good", "0.0003", "True"),
        ("worse", "0.0004", "False"),
        ("base", "0.001", "True"),
    ]
