"""What the checkpoint layouts of AutoGPTQ and AutoAWQ can hold, without torch: for plans, and for refusing a recipe
before it is queued.

Both give one grid to a whole model, its scales in float16, and pack codes into 32-bit words
(engine/formats/checkpoints.py).
"""

from paredown.contracts.families import ModelShape
from paredown.contracts.job import Format
from paredown.contracts.recipes import Stage, WeightGrid, quantizer

# Model types of which files of both layouts were seen to load in transformers with gptqmodel.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
BITS = {Format.GPTQ: (2, 3, 4, 8), Format.AWQ: (4,)}
# Readers take layers whose sizes are multiples of this: each row and column of codes fills whole words then.
MULTIPLE = 32
# vLLM's kernels for these layouts: (bits, symmetric), and the largest group.
_VLLM_GPTQ_GRIDS = ((4, True), (8, True))
_VLLM_GPTQ_GROUP = 128


def refusal(file_format: Format, shape: ModelShape, recipe: tuple[Stage, ...]) -> tuple[str, str] | None:
    """(the field of the job to change, why and to what) where a file would not load; None where it would.

    `shape` is the artifact's.
    """
    if shape.model_type not in MODEL_TYPES:
        return "format", (
            f"{file_format} is written of {', '.join(MODEL_TYPES)} models, which its readers were seen to load; of a "
            f"{shape.model_type} model, set format to compressed-tensors, native or safetensors."
        )
    stage = quantizer(recipe)
    if not isinstance(stage, WeightGrid):
        # What the recipe says alone is refused where a job is read.
        return "format", f"{file_format} holds integers on one grid; use rtn, gptq or awq."
    field = f"recipe.{recipe.index(stage)}"
    if stage.bits not in BITS[file_format]:
        *others, last = map(str, BITS[file_format])
        known = f"{', '.join(others)} or {last}" if others else last
        return f"{field}.bits", f"{file_format} holds codes of {known} bits; set bits to {BITS[file_format][-1]}."
    if stage.embeddings != 16:
        return f"{field}.embeddings", f"{file_format}'s readers take embeddings in 16 bits; set embeddings to 16."
    kept: dict[str, list[bool]] = {}
    names = [linear.name for linear in shape.linears] * shape.num_blocks
    for short, (name, linear) in zip(names, shape.named_linears(), strict=True):
        skipped = stage.skips(name)
        kept.setdefault(short, []).append(not skipped)
        if not skipped and (linear.out_features % MULTIPLE or linear.in_features % MULTIPLE):
            return "format", (
                f"{file_format}'s readers take layers whose sizes are multiples of {MULTIPLE}, and {name} has "
                f"{linear.out_features} × {linear.in_features}; skip that layer, or set format to compressed-tensors."
            )
    if file_format is Format.GPTQ and any(len(set(where)) > 1 for where in kept.values()):
        return f"{field}.skip", (
            "gptq says which layers are quantized once for all blocks; skip the same ones in each, such as "
            f"*.{shape.linears[-1].name}, or set format to compressed-tensors."
        )
    return None


def is_for_vllm(file_format: Format, grid: WeightGrid) -> bool:
    """Whether vLLM has kernels for the file."""
    if file_format is Format.AWQ:
        return True
    return (grid.bits, grid.symmetric) in _VLLM_GPTQ_GRIDS and (grid.group_size or 0) <= _VLLM_GPTQ_GROUP
