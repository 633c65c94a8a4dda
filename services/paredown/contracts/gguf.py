"""What a GGUF file can hold, without torch: for plans, and for refusing a recipe before it is queued.

GGUF keeps weights in blocks of 32 along the input, each with a float16 scale and, where the grid is not symmetric, a
float16 minimum; or in super-blocks of 256, whose groups have codes for their scales and minima (K-quants). The engine
packs by the same tables (engine/formats/gguf.py).
"""

from typing import Any

from paredown.contracts.recipes import EightBit, Stage, UniformGrid, WeightGrid
from paredown.contracts.recipes.quantization import K_QUANTS, SUPER_BLOCK
from paredown.contracts.recipes.width import Width

BLOCK_WEIGHTS = 32
# (bits, symmetric) → the type that holds codes of that grid exactly.
GRID_TYPES: dict[tuple[int, bool], str] = {
    (4, True): "Q4_0",
    (4, False): "Q4_1",
    (5, True): "Q5_0",
    (5, False): "Q5_1",
    (8, True): "Q8_0",
}
K_TYPES = {bits: f"Q{bits}_K" for bits in K_QUANTS}
# Weights and bytes of a block.
BLOCKS = {
    "Q4_0": (BLOCK_WEIGHTS, 18),
    "Q4_1": (BLOCK_WEIGHTS, 20),
    "Q5_0": (BLOCK_WEIGHTS, 22),
    "Q5_1": (BLOCK_WEIGHTS, 24),
    "Q8_0": (BLOCK_WEIGHTS, 34),
    **{K_TYPES[bits]: (SUPER_BLOCK, size) for bits, (_, _, size) in K_QUANTS.items()},
}
# Bits that a recipe gives the embeddings → their type, without K-quants.
EMBEDDING_TYPES = {4: "Q4_1", 5: "Q5_0", 8: "Q8_0", 16: "Q8_0"}
_YARN_SETTINGS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
# transformers' model_type → llama.cpp's name of the architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}


def model_refusal(config: dict[str, Any]) -> str | None:
    """Why this release writes no GGUF of a model with this `config.json`; None where it does."""
    model_type = config["model_type"]
    if model_type not in ARCHITECTURES:
        return (
            f"GGUF is written of {', '.join(sorted(ARCHITECTURES))} models; llama.cpp does not know the layers of a "
            f"{model_type} model, or this release cannot map them. Set format to safetensors or compressed-tensors."
        )
    if reason := _computed_otherwise(config):
        return f"{reason}, so the file would compute something else. Set format to safetensors or compressed-tensors."
    return None


def _computed_otherwise(config: dict[str, Any]) -> str | None:
    """What of a configuration llama.cpp's architecture of that name does not do, or this release does not map to it."""
    model_type = config["model_type"]
    if model_type == "gpt2":
        activation, known = config.get("activation_function", "gelu_new"), ("gelu_new", "gelu_pytorch_tanh")
    else:
        activation, known = config.get("hidden_act", "silu"), ("silu", "swish")
    if activation not in known:
        return f"llama.cpp's {ARCHITECTURES[model_type]} has another activation than {activation}"
    if model_type == "gpt2" and config.get("scale_attn_by_inverse_layer_idx"):
        return "llama.cpp's gpt2 does not scale a block's attention by the block's number, and this model does"
    if model_type == "gpt2" and not config.get("scale_attn_weights", True):
        return "llama.cpp's gpt2 scales its attention by the width of a head, and this model does not"
    head_dim = config.get("head_dim")
    if model_type == "qwen2" and head_dim and head_dim != config["hidden_size"] // config["num_attention_heads"]:
        return "llama.cpp's qwen2 divides the hidden size by the number of heads to know a head's width, here another"
    if model_type == "qwen3" and config.get("attention_bias"):
        return "llama.cpp's qwen3 has no biases in its attention, and this model has"
    # Older configurations say rope_scaling, and type.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        return f"Rotary scaling of the kind {kind} is not mapped to llama.cpp's"
    if kind == "yarn" and any(rope.get(name) is not None for name in _YARN_SETTINGS):
        return "Yarn with settings of its own is not mapped to llama.cpp's"
    return None


def width_refusal(model_type: str, stage: Stage) -> str | None:
    """Why llama.cpp could not load what the stage leaves of such a model; None where it does."""
    if model_type == "qwen2" and isinstance(stage, Width) and stage.head_groups:
        return (
            "llama.cpp's qwen2 divides the hidden size by the number of heads to know a head's width, so none can go; "
            "set head_groups to 0, or format to safetensors."
        )
    return None


def grid_refusal(grid: UniformGrid | EightBit) -> tuple[str, str] | None:
    """(the stage's field to change, why and to what) where no type of GGUF holds the grid; None where one does."""
    if isinstance(grid, EightBit):
        return "method", "GGUF cannot say how activations are rounded; set format to compressed-tensors."
    if grid.k_quant:
        return None
    for bits in grid.widths:
        if (bits, grid.symmetric) not in GRID_TYPES:
            kind = "symmetric" if grid.symmetric else "asymmetric"
            field = "bits" if isinstance(grid, WeightGrid) else "choices"
            field = "symmetric" if (bits, not grid.symmetric) in GRID_TYPES else field
            return field, (
                f"GGUF holds no {bits}-bit {kind} grid; use 4 or 5 bits, or 8 bits symmetric, or set k_quant to true, "
                "which has 2 to 6 bits."
            )
    if grid.group_size != BLOCK_WEIGHTS:
        return (
            "group_size",
            f"GGUF stores a scale for every {BLOCK_WEIGHTS} weights, so a larger group would cost accuracy and save no "
            f"byte; set group_size to {BLOCK_WEIGHTS}.",
        )
    return None


def layer_type(grid: WeightGrid, in_features: int) -> str:
    """The block type of a linear that the grid was not refused for."""
    grid = grid.for_width(in_features)
    return K_TYPES[grid.bits] if grid.k_quant else GRID_TYPES[grid.bits, grid.symmetric]


def embedding_type(grid: UniformGrid | None, width: int) -> str | None:
    """The block type of embeddings and head; None where they stay in 16 bits.

    llama.cpp's own quantizer codes them too: in a small model they are a good part of the bytes.
    """
    if grid is None or width % BLOCK_WEIGHTS:
        return None
    if grid.k_quant and width % SUPER_BLOCK == 0 and grid.embeddings in K_TYPES:
        return K_TYPES[grid.embeddings]
    return EMBEDDING_TYPES.get(grid.embeddings)


def embedding_refusal(grid: UniformGrid, width: int) -> str | None:
    """Why embeddings of this width cannot have the bits that the recipe asks for; None where they can."""
    if grid.embeddings >= 8 or embedding_type(grid, width):
        return None
    if width % BLOCK_WEIGHTS:
        return (
            f"GGUF codes embeddings in blocks of {BLOCK_WEIGHTS}, and {width} channels fill none; set embeddings to 16."
        )
    fits = width % SUPER_BLOCK == 0 and not grid.k_quant
    return (
        f"GGUF holds embeddings in {grid.embeddings} bits as a K-quant only, where a model's width is a multiple of "
        f"{SUPER_BLOCK}; here it is {width}. Set embeddings to 5 or 8{', or k_quant to true' if fits else ''}."
    )


def search_effort(grid: UniformGrid) -> float:
    """How many times as long as a symmetric grid's the search for scales takes in GGUF: about, by seconds on a CPU."""
    if grid.scale_search == "min_max" or (grid.symmetric and not grid.k_quant):
        return 1.0
    if not grid.k_quant:
        return 2.7
    return 3.0 if grid.keeps_zeros(SUPER_BLOCK) else 5.0
