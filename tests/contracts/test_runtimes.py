"""Which runtimes read an artifact, and what a report says of each."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.core.builders import make_speed
from tests.core.planned import GPT2, LLAMA, SMOL

from paredown.contracts.artifact import Manifest
from paredown.contracts.families import shape_from_config
from paredown.contracts.job import EvaluationSettings, Format
from paredown.contracts.recipes import Recipe, shape_left
from paredown.contracts.report import Report, RuntimeProof
from paredown.contracts.runtimes import own_runtime, unread_runtime, vllm_refusal

RECIPES: TypeAdapter[Recipe] = TypeAdapter(Recipe)
RELEASE = Path(__file__).parents[1] / "upgrade" / "release-0.1" / "store" / "artifacts"


@pytest.mark.parametrize(
    ("file_format", "stage", "on_a_gpu", "on_a_cpu"),
    [
        ("compressed-tensors", {"method": "rtn", "bits": 4}, None, None),
        ("compressed-tensors", {"method": "rtn", "bits": 8}, None, "4 bits only"),
        ("compressed-tensors", {"method": "rtn", "bits": 3}, "3 bits are for transformers", "4 bits only"),
        ("compressed-tensors", {"method": "mixed", "choices": [4, 8]}, None, "4 bits only"),
        ("compressed-tensors", {"method": "smoothquant"}, None, None),
        ("compressed-tensors", {"method": "fp8"}, None, "no kernel for float8"),
        ("safetensors", {"method": "wanda"}, None, None),
        ("safetensors", {"method": "rtn", "bits": 2}, None, None),
        ("gptq", {"method": "gptq", "bits": 4}, None, None),
        ("gptq", {"method": "gptq", "bits": 8}, None, "8 bits on a GPU"),
        ("gptq", {"method": "gptq", "bits": 4, "symmetric": False}, "symmetric grids", "symmetric grids"),
        ("awq", {"method": "gptq", "bits": 4, "symmetric": False}, None, None),
        ("native", {"method": "svd"}, "no native artifact", "no native artifact"),
        ("gguf", {"method": "rtn", "bits": 4, "group_size": 32}, "through a plugin", "through a plugin"),
    ],
)
def test_vllm_is_claimed_for_the_formats_and_widths_that_it_reads(
    file_format: str, stage: dict[str, Any], on_a_gpu: str | None, on_a_cpu: str | None
) -> None:
    recipe = RECIPES.validate_python([stage])
    for device, expected in ((None, on_a_gpu), ("cuda", on_a_gpu), ("cpu", on_a_cpu)):
        refusal = vllm_refusal(Format(file_format), recipe, device)
        assert (refusal is None) is (expected is None), refusal
        assert (expected or "") in (refusal or "")


@pytest.mark.parametrize(
    ("skip", "refused"),
    [
        ([], False),
        (["*.down_proj", "*.o_proj"], False),
        (["*.q_proj", "*.k_proj", "*.v_proj"], False),
        (["model.layers.0.*"], False),
        (["*.v_proj"], True),
        (["model.layers.1.mlp.up_proj"], True),
    ],
)
def test_vllm_reads_layers_that_it_joins_packed_or_dense_as_a_whole(skip: list[str], refused: bool) -> None:
    shape = shape_from_config(LLAMA)
    for stage in ({"method": "rtn"}, {"method": "smoothquant"}):
        recipe = RECIPES.validate_python([stage | {"skip": skip}])
        reason = vllm_refusal(Format.COMPRESSED_TENSORS, recipe, shape=shape)
        assert (reason is not None) is refused, reason
        assert vllm_refusal(Format.SAFETENSORS, recipe, shape=shape) is None
    if refused:
        assert "skip both or neither" in (reason or "")
        asked = EvaluationSettings(runtimes=("vllm",))
        assert "skip both or neither" in (unread_runtime(asked, Format.COMPRESSED_TENSORS, recipe, shape) or "")


def test_vllm_is_not_claimed_for_models_that_it_computes_otherwise() -> None:
    pruned = RECIPES.validate_python([{"method": "llm-pruner", "head_groups": 1}])
    for model_type, refused in (("qwen2", True), ("llama", False)):
        shape = shape_from_config(SMOL | {"model_type": model_type})
        assert vllm_refusal(Format.SAFETENSORS, (), shape=shape) is None
        reason = vllm_refusal(Format.SAFETENSORS, pruned, shape=shape_left(shape, pruned))
        assert ("width" in (reason or "")) is refused
    numbered = shape_from_config(GPT2 | {"scale_attn_by_inverse_layer_idx": True})
    assert "number" in (vllm_refusal(Format.SAFETENSORS, (), shape=numbered) or "")


def test_a_job_asks_for_runtimes_that_read_its_format() -> None:
    rtn = RECIPES.validate_python([{"method": "rtn"}])
    shape = shape_from_config(LLAMA)
    assert unread_runtime(EvaluationSettings(), Format.NATIVE, rtn, shape) is None
    for file_format in Format:
        if file_format is not Format.AUTO:
            alone = EvaluationSettings(runtimes=(own_runtime(file_format),))
            assert unread_runtime(alone, file_format, rtn, shape) is None
    both = EvaluationSettings(runtimes=("transformers", "vllm"))
    assert unread_runtime(both, Format.COMPRESSED_TENSORS, rtn, shape) is None
    assert "proved in llama.cpp" in (unread_runtime(both, Format.GGUF, rtn, shape) or "")
    assert "asks for vllm" in (unread_runtime(EvaluationSettings(runtimes=("vllm",)), Format.NATIVE, rtn, shape) or "")


def test_manifests_of_the_release_before_are_read_and_nothing_is_added_to_them() -> None:
    paths = sorted(RELEASE.glob("*/*/manifest.json"))
    assert paths
    for path in paths:
        report = Manifest.model_validate_json(path.read_bytes()).report
        assert [report.speeds_in(proof) for proof in report.runtimes] == [{}, {}, {}]
        assert all("speeds" not in proof.model_dump() for proof in report.runtimes)
    assert "runtimes" not in EvaluationSettings().model_dump()


def test_speeds_of_the_formats_own_runtime_stay_where_they_were() -> None:
    own, more = {"artifact": make_speed(10), "base": make_speed(9)}, {"artifact": make_speed(20)}
    own = {role: speed.model_copy(update={"runtime": "transformers 5.23"}) for role, speed in own.items()}
    proofs = (
        RuntimeProof(runtime="transformers", version="5.23", loads=True),
        RuntimeProof(runtime="vllm", version="0.32.0", loads=True, speeds=more),
        RuntimeProof(runtime="llama.cpp", version="", loads=False),
    )
    report = Report(
        base=None,
        artifact=None,
        size_bytes=1,
        base_bytes=2,
        sparsity=0,
        average_bits=4,
        speeds=own,
        runtimes=proofs,
    )
    assert [report.speeds_in(proof) for proof in proofs] == [own, more, {}]
    assert report.decode_speedup == pytest.approx(10 / 9), "a front and a budget are of the format's own runtime"
    assert Report.model_validate_json(report.model_dump_json()) == report
