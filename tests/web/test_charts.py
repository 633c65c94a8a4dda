"""The trade-off chart tells the truth about the front."""

from uuid import uuid4

import pytest

from paredown.contracts.artifact import BlockReport, Front, FrontPoint, LayerReport, LossPoint, StageReport, Verdict
from paredown.web import charts

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
    shown = {point.name: point for point in charts.points(front(*POINTS), FAMILIES, "USD")}
    assert shown["good"].perplexity_change == pytest.approx(0.1)
    assert shown["good"].size_ratio == pytest.approx(0.3)
    assert shown["base"].perplexity_change is None
    assert (shown["base"].verdict, shown["base"].id) == (charts.BASE, "")
    assert shown["worse"].family == "pruning + quantization"


def test_points_without_a_figure_for_the_axis_are_not_placed():
    shown = charts.points(front(*POINTS, cost_axis="decode_tokens_per_second"), FAMILIES, None)
    assert [point.name for point in shown] == ["base", "good"]


@pytest.mark.parametrize(
    ("cost_axis", "step"), [("size_bytes", "step-after"), ("decode_tokens_per_second", "step-before")]
)
def test_the_line_joins_the_front_only_and_never_slopes(cost_axis, step):
    shown = charts.points(front(*POINTS, cost_axis=cost_axis), FAMILIES, None)
    drawn = charts.front_chart(shown, cost_axis, dark=False).to_dict()
    line = drawn["layer"][0]
    assert line["mark"]["interpolate"] == step
    assert {value["name"] for value in line["data"]["values"]} == {"base", "good"}


def test_missed_budgets_have_a_shape_and_dominated_points_are_grey():
    shown = charts.points(front(*POINTS), FAMILIES, None)
    marks = charts.front_chart(shown, "size_bytes", dark=False).to_dict()["layer"][1]
    scale = marks["encoding"]["shape"]["scale"]
    shapes = dict(zip(scale["domain"], scale["range"], strict=True))
    assert shapes["budget missed"] != shapes["budget met"]
    fills = {value["name"]: value["fill"] for value in marks["data"]["values"]}
    assert fills["good"] == charts.FAMILY_COLOURS["quantization"]
    assert fills["worse"] not in charts.FAMILY_COLOURS.values()


def test_broken_models_do_not_flatten_the_good_ones():
    shown = charts.points(front(*POINTS, point("broken", 9000.0, 200)), FAMILIES, None)
    marks = charts.front_chart(shown, "size_bytes", dark=False).to_dict()["layer"][1]
    assert marks["encoding"]["y"]["scale"]["type"] == "log"


def test_layers_know_their_block_and_kind():
    lines = charts.layer_lines(
        [LayerReport(name="model.layers.7.mlp.up_proj", weights=100, zeros=50, bits=4.25, error=0.01)]
    )
    assert (lines[0]["block"], lines[0]["kind"], lines[0]["zeros"]) == (7, "up_proj", 0.5)
    assert charts.layers_chart(lines) is not None
    assert charts.layers_chart([lines[0] | {"error": None}]) is None


def test_of_a_blocks_experts_the_worst_is_drawn():
    names = [f"model.layers.{block}.mlp.experts.{expert}.up_proj" for block in (1, 0) for expert in (0, 1, 2)]
    names.append("model.layers.0.mlp.shared_expert.up_proj")
    errors = [0.1, 0.3, None, 0.2, 0.02, 0.01, 0.05]
    layers = [LayerReport(name=name, weights=8, error=error) for name, error in zip(names, errors, strict=True)]
    points = charts.layers_chart(charts.layer_lines(layers)).to_dict()["data"]["values"]
    assert {(point["block"], point["kind"], point["error"]) for point in points} == {
        (0, "up_proj", 0.05),
        (0, "up_proj of experts", 0.2),
        (1, "up_proj of experts", 0.3),
    }


def test_a_stage_that_trained_has_a_curve():
    losses = tuple(LossPoint(step=step, loss=loss) for step, loss in ((1, 4.5), (7, 4.0), (13, 3.9)))
    stage = StageReport(stage=1, method="lora", summary="13 steps.", measure="a likelihood", losses=losses)
    drawn = charts.losses_chart(stage).to_dict()
    assert [(point["step"], point["loss"]) for point in drawn["data"]["values"]] == [(1, 4.5), (7, 4.0), (13, 3.9)]
    assert drawn["encoding"]["y"]["scale"] == {"zero": False}


def test_every_block_that_was_measured_has_a_bar_and_those_dropped_stand_out():
    blocks = tuple(
        BlockReport(block=block, importance=value, kept=block != 1) for block, value in enumerate((0.3, 0.1, 0.2, None))
    )
    stage = StageReport(stage=0, method="deeper", summary="Dropped block 1.", measure="an angle", blocks=blocks)
    drawn = charts.blocks_chart(stage).to_dict()
    bars = {bar["block"]: (bar["importance"], bar["fate"]) for bar in drawn["data"]["values"]}
    assert bars == {0: (0.3, "kept"), 1: (0.1, "dropped"), 2: (0.2, "kept")}
    assert drawn["encoding"]["x"]["scale"]["domain"] == [0, 1, 2, 3], "a block without a figure keeps its place"
    colours = drawn["encoding"]["color"]["scale"]
    assert len(set(colours["range"])) == len(colours["domain"]) == 2
