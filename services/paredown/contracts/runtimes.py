"""Which runtimes read an artifact, without torch: for refusing a job before it is queued, and for the engine.

A runtime is claimed by a worker that has it, for the formats and widths that it reads; docs/formats.md has the table.
"""

from collections.abc import Sequence

from paredown.contracts import checkpoints
from paredown.contracts.job import EvaluationSettings, Format, RuntimeName
from paredown.contracts.recipes import EightBit, Stage, WeightGrid, quantizer
from paredown.contracts.shapes import ModelShape

# What a worker reads with the loader in engine/formats/native.py. transformers reads gptq and awq too, through
# gptqmodel, which pins another torch than the engine's.
OWN_LOADER = (Format.NATIVE, Format.GPTQ, Format.AWQ)
# vLLM's kernels for packed integer weights; the CPU's have 4 bits only.
VLLM_BITS = (4, 8)
_VLLM_CPU_BITS = (4,)


def own_runtime(file_format: Format) -> RuntimeName:
    """The runtime that proves every artifact of the format; the report's speeds are of it."""
    if file_format is Format.GGUF:
        return "llama.cpp"
    return "native" if file_format in OWN_LOADER else "transformers"


def vllm_refusal(
    file_format: Format, recipe: Sequence[Stage], device: str | None = None, shape: ModelShape | None = None
) -> str | None:
    """Why vLLM does not read the artifact on the device (None: on no device), as a sentence; None where it does. Where
    the shape is given, which is the artifact's, it is asked whether vLLM has such a model too."""
    if reason := _unread_format(file_format, recipe, device):
        return reason
    return None if shape is None else _unread_model(file_format, recipe, shape)


def _unread_format(file_format: Format, recipe: Sequence[Stage], device: str | None) -> str | None:
    if file_format is Format.GGUF:
        return "vLLM reads GGUF through a plugin."
    if file_format is Format.NATIVE:
        return "Reads no native artifact; format safetensors stores the same weights dense, for every runtime."
    grid = quantizer(tuple(recipe))
    if file_format is Format.SAFETENSORS or grid is None:
        return None
    if isinstance(grid, EightBit):
        emulated = grid.number == "float" and device == "cpu"
        return (
            "vLLM has no kernel for float8 on a CPU, only an emulation that takes seconds a token."
            if emulated
            else None
        )
    unread = [str(bits) for bits in grid.widths if bits not in (_VLLM_CPU_BITS if device == "cpu" else VLLM_BITS)]
    if file_format in (Format.GPTQ, Format.AWQ):
        assert isinstance(grid, WeightGrid), "the format was checked"
        if not checkpoints.is_for_vllm(file_format, grid) or (unread and device == "cpu"):
            kernels = (
                "4 bits" if file_format is Format.AWQ else "4 and 8 bits on symmetric grids, in groups of up to 128"
            )
            return f"vLLM's kernels read this format in {kernels}; 8 bits on a GPU."
        return None
    if unread and device == "cpu":
        return "vLLM's kernels for a CPU read packed weights in 4 bits only."
    if unread:
        return f"vLLM's kernels read this format in 4 and 8 bits; {' and '.join(unread)} bits are for transformers."
    return None


def _unread_model(file_format: Format, recipe: Sequence[Stage], shape: ModelShape) -> str | None:
    if shape.numbered_blocks:
        return "vLLM's GPT-2 does not scale a block's attention by the block's number, and this model does."
    queries = next((linear.out_features for linear in shape.linears if linear.name == "self_attn.q_proj"), 0)
    if shape.model_type == "qwen2" and queries != shape.hidden_size:
        return (
            "vLLM's qwen2 divides the hidden size by the number of heads to know a head's width, and here that is not "
            "its width."
        )
    grid = quantizer(tuple(recipe))
    if grid is None or file_format is Format.SAFETENSORS:
        return None
    reading: list[str] = []
    for name, linear in shape.named_linears():
        # What shares an input within one module is one layer in vLLM.
        together = bool(reading) and linear.shares_input and _module(name) == _module(reading[0])
        reading = [*reading, name] if together else [name]
        if grid.skips(name) != grid.skips(reading[0]):
            return (
                f"vLLM joins {reading[0]} and {name}, and reads such a layer packed or dense as a whole: skip both or "
                "neither."
            )
    return None


def _module(linear: str) -> str:
    return linear.rpartition(".")[0]


def unread_runtime(
    evaluation: EvaluationSettings, file_format: Format, recipe: Sequence[Stage], shape: ModelShape
) -> str | None:
    """Why a runtime that a job asks for does not read its artifact, as a sentence; None where all do. The shape is the
    artifact's."""
    for runtime in evaluation.runtimes or ():
        if runtime == "vllm":
            if reason := vllm_refusal(file_format, recipe, shape=shape):
                return (
                    f"evaluation.runtimes asks for vllm, but: {reason} Leave it out, or change the format or the bits."
                )
        elif runtime != (own := own_runtime(file_format)):
            return (
                f"evaluation.runtimes asks for {runtime}, but artifacts of format {file_format} are proved in {own}; "
                f"name that one, vllm or both."
            )
    return None
