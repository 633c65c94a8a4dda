"""An artifact's charts tell the truth about its layers, blocks and training."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from paredown.contracts.report import BlockReport, LayerReport, LossPoint, StageReport
from paredown.contracts.search import Rung, SearchDetails
from paredown.web import charts, search_chart


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


def trial(number: int, rung: str, *, bits: int, within: bool | None = True, **figures: float) -> dict[str, object]:
    measured = {"perplexity": 22.0, "perplexity_increase": 0.1, "divergence": 0.05, "size_bytes": 40, "size_ratio": 0.4}
    return {
        "number": number,
        "rung": rung,
        "recipe": [{"method": "rtn", "bits": bits}],
        "recipe_name": f"rtn-{bits}",
        "label": f"rtn-{bits}",
        "predicted_size_ratio": 0.4,
        "state": "succeeded" if within is not None else "running",
        "reused": False,
        "job_id": None,
        "artifact_id": None,
        "within_limits": within,
        "on_front": False,
        **(dict.fromkeys(measured) if within is None else measured | figures),
    }


def search(*members: dict[str, object], chosen: int | None = None, **spec: object) -> SearchDetails:
    return SearchDetails.model_validate(
        {
            "id": UUID(int=1),
            "project": "default",
            "name": None,
            "model": "hf://a/b",
            "state": "finished" if chosen is not None else "exploring",
            "minimize": "loss",
            "trials": len(members),
            "progress": 1,
            "chosen_recipe": None,
            "created_at": datetime.now(UTC),
            "finished_at": None,
            "spec": {"model": "hf://a/b", "max_size_ratio": 0.5, **spec},
            "candidates": 4,
            "ruled_out": 0,
            "members": members,
            "chosen": chosen,
            "explanation": None,
            "front": None,
        }
    )


def test_a_search_charts_its_own_loss_and_what_became_of_each_trial():
    found = search(
        trial(0, "proxy", bits=3, divergence=0.3),
        trial(1, "proxy", bits=4, divergence=0.1),
        trial(2, "proxy", bits=8, within=False, divergence=0.01, size_ratio=0.9),
        trial(3, "proxy", bits=5, within=None),
        trial(4, "full", bits=4, divergence=0.08),
        chosen=4,
        max_perplexity_increase=0.2,
    )
    proxies = search_chart.points(found, Rung.PROXY)
    assert proxies.is_divergence
    assert proxies.loss_limit is None, "a limit on perplexity is no limit on divergence"
    assert {point.number: (point.loss, point.fate) for point in proxies.points} == {
        0: (0.3, "not taken further"),
        1: (0.1, "tried in full as well"),
        2: (0.01, "beyond the limits"),
    }
    assert search_chart.unmeasured(found, Rung.PROXY) == {"running": 1}
    assert [point.fate for point in search_chart.points(found, Rung.FULL).points] == ["chosen"]


def test_without_divergence_everywhere_the_loss_is_perplexity_and_its_limit_a_line():
    found = search(
        trial(0, "proxy", bits=3, perplexity=30.0, perplexity_increase=0.5, within=False),
        trial(1, "proxy", bits=4, divergence=None),
        max_perplexity_increase=0.2,
    )
    drawn = search_chart.points(found, Rung.PROXY)
    assert {point.number: (point.loss, point.fate) for point in drawn.points} == {
        0: (30.0, "beyond the limits"),
        1: (22.0, "within the limits"),
    }
    assert drawn.loss_limit == pytest.approx(24.0)
    layers = search_chart.chart(drawn, found.spec.max_size_ratio).to_dict()["layer"]
    assert [layer["mark"]["type"] for layer in layers] == ["rule", "rule", "point"]
    assert search_chart.chart(search_chart.points(found, Rung.FULL), 0.5) is None
