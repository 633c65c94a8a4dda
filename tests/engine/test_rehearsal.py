"""A rehearsal runs the largest block through the job's own code. That it changes no byte is in tests/e2e."""

from pathlib import Path
from typing import Any

import pytest
from tests.engine.orders import config_of, order, save_model

from paredown.contracts.job import Calibration, Format
from paredown.engine.errors import Drained
from paredown.engine.rehearsal import rehearse

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
RTN = {"method": "rtn", "bits": 4, "group_size": 32}
MIXED = {"method": "mixed", "average_bits": 6, "group_size": 32, "choices": [4, 8]}
SHORTGPT = {"method": "shortgpt", "blocks": 1}
DENSE = Calibration(samples=4, sequence_length=64, statistics="dense")


@pytest.mark.parametrize(
    ("model_type", "recipe", "more"),
    [
        ("llama", [{"method": "wanda"}, GPTQ], {}),
        ("llama", [GPTQ], {"calibration": DENSE}),
        ("llama", [GPTQ], {"pausing": False, "format": Format.SAFETENSORS}),
        ("llama", [RTN], {"evaluation": None}),
        ("llama", [SHORTGPT], {}),
        ("llama", [MIXED], {"format": Format.NATIVE}),
        ("mixtral", [GPTQ], {"calibration": DENSE.model_copy(update={"unreached_experts": "fail"})}),
    ],
    ids=["linear", "dense", "rerunning", "unmeasured", "depth-alone", "mixed", "experts"],
)
def test_one_block_is_compressed_saved_and_evaluated(
    tmp_path: Path, model_type: str, recipe: list[Any], more: dict[str, Any]
) -> None:
    save_model(tmp_path / "model", config_of(model_type))
    made = rehearse(order(tmp_path, recipe, **more), lambda: False)
    assert made.block == 0
    assert min(made.block_seconds, made.saved_seconds) > 0
    assert min(made.checkpoint_bytes, made.saved_bytes, made.memory_bytes) > 0
    assert made.device_memory_bytes is None
    # Both sequences' tokens that one micro-batch holds, or nothing where nothing is read.
    assert made.read_tokens == (0 if more.get("evaluation", 1) is None else 3 * 64)


@pytest.mark.parametrize(
    ("stage", "skip"),
    [
        (RTN, ["model.layers.0.*"]),
        (RTN, ["model.layers.0.*", "model.layers.1.self_attn.*"]),
        (MIXED, ["model.layers.0.*"]),
    ],
)
def test_the_block_is_one_that_the_recipe_does_not_skip(tmp_path: Path, stage: dict[str, Any], skip: list[str]) -> None:
    made = rehearse(order(tmp_path, [stage | {"skip": skip}], format=Format.NATIVE), lambda: False)
    whole = rehearse(order(tmp_path, [stage], format=Format.NATIVE, work_dir=tmp_path / "2"), lambda: False)
    attention = "model.layers.1.self_attn.*" in skip
    assert (made.checkpoint_bytes > 1.2 * whole.checkpoint_bytes) == attention


@pytest.mark.parametrize(
    "after", [{"method": "rtn", "group_size": 64}, {"method": "magnitude", "pattern": "32:64"}], ids=["groups", "N:M"]
)
def test_the_block_is_as_narrow_as_the_recipe_leaves_it(tmp_path: Path, after: dict[str, Any]) -> None:
    config = config_of("llama")
    config.intermediate_size = 96
    save_model(tmp_path / "model", config)
    # 64 channels are left, which both divide.
    narrow = {"method": "llm-pruner", "mlp_share": 0.3333}
    made = rehearse(order(tmp_path, [narrow, after]), lambda: False)
    assert made.read_tokens == 3 * 64


def test_a_model_whose_blocks_are_numbered_is_rehearsed_by_its_first(tmp_path: Path) -> None:
    config = config_of("gpt2")
    config.scale_attn_by_inverse_layer_idx = True
    save_model(tmp_path / "model", config)
    assert rehearse(order(tmp_path, [GPTQ], format=Format.NATIVE), lambda: False).block == 0


def test_a_rehearsal_is_drained_before_its_block(tmp_path: Path) -> None:
    with pytest.raises(Drained):
        rehearse(order(tmp_path, [GPTQ]), lambda: True)
