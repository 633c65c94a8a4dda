"""An artifact's charts tell the truth about its layers, blocks and training."""

import pytest

from paredown.contracts.artifact import BlockReport, LayerReport, LossPoint, StageReport
from paredown.web import charts


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


def test_artifacts_are_compared_by_the_means_of_their_blocks():
    names = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj")
    lines = {
        name: charts.layer_lines(
            [
                LayerReport(name=layer, weights=10, zeros=zeros, error=error)
                for layer, error in zip(names, errors, strict=True)
            ]
        )
        for name, zeros, errors in (("one", 5, (0.1, 0.3, 0.2)), ("two", 0, (None, None, float("inf"))))
    }
    drawn = charts.depth_lines(lines, None)
    assert [(line["artifact"], line["block"], line["zeros"]) for line in drawn] == [
        ("one", 0, 0.5),
        ("one", 1, 0.5),
        ("two", 0, 0.0),
        ("two", 1, 0.0),
    ]
    assert [line["error"] for line in drawn] == [pytest.approx(0.2), pytest.approx(0.2), None, None]
    assert [line["error"] for line in charts.depth_lines(lines, "up_proj")][:2] == [0.1, 0.2]
    points = charts.depth_chart(drawn, "error").to_dict()["data"]["values"]
    assert {point["artifact"] for point in points} == {"one"}, "what has no error is not drawn at zero"
    assert charts.depth_chart([line for line in drawn if line["artifact"] == "two"], "error") is None
