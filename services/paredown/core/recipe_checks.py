"""Whether a recipe fits a model and a format, from sizes alone: what cannot run is refused before it is queued."""

from fnmatch import fnmatchcase
from typing import get_args

from paredown.contracts import checkpoints, gguf
from paredown.contracts.families import LinearShape, ModelShape
from paredown.contracts.job import Format, JobSpec
from paredown.contracts.recipes import (
    Deeper,
    Depth,
    EightBit,
    Mixed,
    Stage,
    Training,
    UniformGrid,
    Width,
    conflict,
)
from paredown.contracts.recipes.pruning import Pruner, parse_pattern
from paredown.contracts.recipes.quantization import GroupSize
from paredown.contracts.runtimes import unread_runtime
from paredown.core.errors import CalibrationUnfit, GroupSizeUnfit, RecipeRefused
from paredown.core.estimates import is_calibrated
from paredown.core.sizes import quantized_layers, touched

# Model types whose config.json transformers reads only where the hidden size is a multiple of the number of heads.
_WHOLE_HEADS = ("gemma2", "gemma3_text", "llama")


def check_recipe(shape: ModelShape, spec: JobSpec, earlier: tuple[Stage, ...] = (), *, evaluated: bool = True) -> None:
    """Raises RecipeRefused, GroupSizeUnfit or CalibrationUnfit with the field of the job to blame.

    `earlier` stages made the artifact that is compressed further; what a recipe forbids is forbidden across them too.
    Without `evaluated`, what the job says of its evaluation is of no account.
    """
    if reason := conflict(earlier, spec.recipe):
        raise RecipeRefused(
            f"This recipe does not fit what the artifact went through: {reason}; start from its base.", field="recipe"
        )
    base = shape
    for index, stage in enumerate(spec.recipe):
        field = f"recipe.{index}"
        if reason := stage.refusal(shape):
            raise RecipeRefused(reason, field=field)
        _check_skip(shape, stage, field)
        linears = touched(shape, stage)
        if isinstance(stage, UniformGrid):
            _check_group_size(stage, linears, field)
        if isinstance(stage, EightBit) and stage.is_dynamic and shape.family == "opt":
            _check_flattened(stage, linears, field)
        if isinstance(stage, Mixed):
            _check_budget(shape, spec, stage, field)
            _check_reach(shape, spec)
        if isinstance(stage, Pruner) and stage.pattern is not None:
            _check_pattern(stage.pattern, linears, f"{field}.pattern")
        if isinstance(stage, Depth):
            _check_depth(shape, spec, stage, field)
        if isinstance(stage, Width):
            _check_width(shape, stage, field)
        if isinstance(stage, Training):
            _check_training(shape, stage, linears, field)
        # Later stages meet what this one leaves, under its numbers.
        shape = stage.shape_after(shape)
    if spec.resolved_format is Format.COMPRESSED_TENSORS and shape.family == "gpt2":
        raise RecipeRefused(
            "compressed-tensors does not know GPT-2's Conv1D layers, so neither vLLM nor transformers would load the "
            "artifact; set format to native, or to safetensors, which stores the quantized weights dense.",
            field="format",
        )
    if spec.resolved_format is Format.COMPRESSED_TENSORS:
        _check_experts(shape, spec)
        _check_packing(shape, spec)
    if spec.resolved_format is Format.GGUF:
        _check_gguf(base, spec, earlier)
    else:
        _check_heads(base, shape, spec)
    if spec.resolved_format in checkpoints.BITS and (
        refusal := checkpoints.refusal(spec.resolved_format, shape, spec.recipe)
    ):
        field, reason = refusal
        raise RecipeRefused(reason, field=field)
    if reason := unread_runtime(spec.evaluation, spec.resolved_format, spec.recipe, shape):
        raise RecipeRefused(reason, field="evaluation.runtimes")
    if is_calibrated(spec) and (reason := spec.calibration.refusal(shape)):
        raise RecipeRefused(reason, field="calibration.asymmetry")
    _check_context(shape, spec, evaluated=evaluated)


def _check_experts(shape: ModelShape, spec: JobSpec) -> None:
    """transformers joins a block's experts while it loads them, and can do so only if all are packed, symmetrically."""
    experts = [name for name, linear in shape.named_linears() if linear.of_expert]
    for index, stage in enumerate(spec.recipe if experts else ()):
        if not isinstance(stage, UniformGrid):
            continue
        reason = None
        if not stage.symmetric:
            reason, field = "whose grid is not symmetric", f"recipe.{index}.symmetric"
        elif any(stage.skips(name) for name in experts):
            reason, field = "of which only some are quantized", f"recipe.{index}.skip"
        elif stage.needs_calibration and spec.calibration.unreached_experts == "dense":
            reason, field = "of which only some are quantized", "calibration.unreached_experts"
        if reason:
            raise RecipeRefused(
                f"transformers loads no experts from compressed-tensors {reason}; quantize all of them symmetrically, "
                "or set format to safetensors, which stores the quantized weights dense.",
                field=field,
            )


def _check_packing(shape: ModelShape, spec: JobSpec) -> None:
    for index, stage in enumerate(spec.recipe):
        if isinstance(stage, Mixed) and (refusal := stage.packing_refusal(shape.model_type, experts=shape.has_experts)):
            field, reason = refusal
            raise RecipeRefused(reason, field=f"recipe.{index}.{field}" if field else "format")


def _check_heads(base: ModelShape, left: ModelShape, spec: JobSpec) -> None:
    if base.kv_heads == left.kv_heads or left.model_type not in _WHOLE_HEADS or not left.hidden_size % left.query_heads:
        return
    each = base.query_heads // base.kv_heads
    counts = [count for count in range(1, base.kv_heads) if not base.hidden_size % (each * count)]
    advice = f"leave {' or '.join(map(str, counts))} key-value heads, or " if counts else ""
    last = max(index for index, stage in enumerate(spec.recipe) if isinstance(stage, Width) and stage.head_groups)
    raise RecipeRefused(
        f"transformers loads a {left.model_type} model only if its hidden size, {left.hidden_size}, is a multiple of "
        f"the number of its heads, and {left.query_heads} of {base.query_heads} would be left; {advice}set head_groups "
        "to 0, or format to gguf.",
        field=f"recipe.{last}.head_groups",
    )


def _check_gguf(shape: ModelShape, spec: JobSpec, before: tuple[Stage, ...]) -> None:
    for index, stage in enumerate(spec.recipe):
        if reason := gguf.width_refusal(shape.model_type, stage):
            raise RecipeRefused(reason, field=f"recipe.{index}.head_groups")
        if isinstance(stage, UniformGrid) and (refusal := gguf.grid_refusal(stage)):
            field, reason = refusal
            raise RecipeRefused(reason, field=f"recipe.{index}.{field}")
        if isinstance(stage, UniformGrid) and (reason := gguf.embedding_refusal(stage, shape.hidden_size)):
            raise RecipeRefused(reason, field=f"recipe.{index}.embeddings")
        pruned = any(isinstance(earlier, Pruner) for earlier in (*before, *spec.recipe[:index]))
        if isinstance(stage, UniformGrid) and pruned:
            _check_zeros(shape, stage, f"recipe.{index}")
        shape = stage.shape_after(shape)


def _check_zeros(shape: ModelShape, stage: UniformGrid, field: str) -> None:
    if all(stage.keeps_zeros(linear.in_features) for _, linear in touched(shape, stage)):
        return
    at_fault, way_out = "symmetric", "a symmetric grid."
    if stage.k_quant:
        at_fault = "choices" if isinstance(stage, Mixed) else "bits"
        way_out = "K-quants of 3, 6 and 8 bits, which have none."
    raise RecipeRefused(
        "GGUF's asymmetric types round each block's minimum, so pruned weights would not stay zero; use " + way_out,
        field=f"{field}.{at_fault}",
    )


def _check_skip(shape: ModelShape, stage: Stage, field: str) -> None:
    names = [name for name, _ in shape.named_linears()]
    for position, pattern in enumerate(stage.skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeRefused(
                f"The pattern {pattern!r} matches no linear layer; they are called such as {names[0]}.",
                field=f"{field}.skip.{position}",
            )
    if all(stage.skips(name) for name in names):
        raise RecipeRefused(
            f"Skipping {', '.join(stage.skip)} leaves {stage.title} nothing to do.", field=f"{field}.skip"
        )


def _check_depth(shape: ModelShape, spec: JobSpec, stage: Depth, field: str) -> None:
    if shape.numbered_blocks:
        raise RecipeRefused(
            "This model scales each block's attention by the block's number (scale_attn_by_inverse_layer_idx), so no "
            "block can take another's place; its depth cannot be pruned.",
            field=field,
        )
    count = stage.dropped(shape.num_blocks)
    most = stage.most(shape.num_blocks, stage.protected(shape.block_linears()))
    if count > most:
        raise RecipeRefused(
            f"{stage.title} cannot drop {count} of {shape.num_blocks} blocks; with these settings at most {most} can "
            "go.",
            field=f"{field}.{'share' if stage.blocks is None else 'blocks'}",
        )
    if isinstance(stage, Deeper) and stage.last_tokens > spec.calibration.sequence_length:
        raise RecipeRefused(
            f"The last {stage.last_tokens} tokens cannot be compared in sequences of "
            f"{spec.calibration.sequence_length}; lower last_tokens, or lengthen the calibration's sequences.",
            field=f"{field}.last_tokens",
        )


def _check_width(shape: ModelShape, stage: Width, field: str) -> None:
    channels, heads = shape.mlp_channels, shape.kv_heads
    if stage.head_groups >= heads:
        raise RecipeRefused(
            f"{stage.title} cannot drop {stage.head_groups} of {heads} key-value heads; at most {heads - 1} can go.",
            field=f"{field}.head_groups",
        )
    left = stage.channels_left(channels)
    if left > channels or (left == channels and stage.mlp_share):
        raise RecipeRefused(
            f"{stage.mlp_share:.1%} of {channels} MLP channels is too little to go: a multiple of 16 is left.",
            field=f"{field}.mlp_share",
        )


def _check_training(shape: ModelShape, stage: Training, linears: list[tuple[str, LinearShape]], field: str) -> None:
    name, narrowest = min(linears, key=lambda item: min(item[1].out_features, item[1].in_features))
    most = min(narrowest.out_features, narrowest.in_features)
    if stage.rank > most:
        raise RecipeRefused(
            f"{name} has {narrowest.out_features} × {narrowest.in_features} weights, which an adapter of rank "
            f"{stage.rank} does not fit; lower rank to {most}, or skip that layer.",
            field=f"{field}.rank",
        )
    if stage.sequence_length > shape.context_length:
        raise CalibrationUnfit(
            f"Sequences of {stage.sequence_length} tokens are longer than the model's context of "
            f"{shape.context_length}.",
            field=f"{field}.sequence_length",
        )


def _check_group_size(stage: UniformGrid, linears: list[tuple[str, LinearShape]], field: str) -> None:
    if stage.k_quant:
        _check_blocks(linears, f"{field}.k_quant")
        return
    size = stage.group_size
    if size is None:
        return
    unfit = next((item for item in linears if item[1].in_features % size), None)
    if unfit is None:
        return
    fitting = [str(other) for other in get_args(GroupSize) if all(not item.in_features % other for _, item in linears)]
    advice = f"sizes that fit every layer: {', '.join(fitting)}" if fitting else "no group size fits every layer"
    raise GroupSizeUnfit(
        f"group_size {size} does not divide the {unfit[1].in_features} input channels of {unfit[0]}; {advice}. Null "
        "gives each row one scale; or skip that layer.",
        field=f"{field}.group_size",
    )


def _check_blocks(linears: list[tuple[str, LinearShape]], field: str) -> None:
    for name, linear in linears:
        if linear.in_features % gguf.BLOCK_WEIGHTS:
            raise GroupSizeUnfit(
                f"GGUF's blocks hold {gguf.BLOCK_WEIGHTS} weights, and {name} has {linear.in_features} input channels; "
                "skip that layer.",
                field=field,
            )


def _check_flattened(stage: EightBit, linears: list[tuple[str, LinearShape]], field: str) -> None:
    if any(linear.name in ("fc1", "fc2") for _, linear in linears):
        raise RecipeRefused(
            f"{stage.title} cannot scale each token as it comes in OPT's fc1 and fc2, because transformers flattens "
            "the sequences before them and would find one scale for all tokens; use static activations, or skip *.fc?.",
            field=field,
        )


def _check_budget(shape: ModelShape, spec: JobSpec, stage: Mixed, field: str) -> None:
    wide = spec.resolved_format is Format.GGUF
    if reason := stage.budget_refusal(quantized_layers(shape, stage), wide=wide):
        raise RecipeRefused(reason, field=f"{field}.average_bits")


def _check_reach(shape: ModelShape, spec: JobSpec) -> None:
    if shape.has_experts and spec.calibration.unreached_experts == "dense":
        raise RecipeRefused(
            "mixed spends a budget on all experts before it is known which ones calibration reaches, so one that stays "
            "dense would break it; set unreached_experts to uniform or fail.",
            field="calibration.unreached_experts",
        )


def _check_pattern(pattern: str, linears: list[tuple[str, LinearShape]], field: str) -> None:
    _, width = parse_pattern(pattern)
    for name, linear in linears:
        if linear.in_features % width:
            raise RecipeRefused(
                f"The pattern {pattern} needs rows that are a multiple of {width}, but {name} has "
                f"{linear.in_features} input channels; use a sparsity instead, or skip that layer.",
                field=field,
            )


def _check_context(shape: ModelShape, spec: JobSpec, *, evaluated: bool) -> None:
    parts = [("calibration", spec.calibration.sequence_length)] if is_calibrated(spec) else []
    if evaluated:
        parts.append(("evaluation", spec.evaluation.sequence_length))
    for part, length in parts:
        if length > shape.context_length:
            raise CalibrationUnfit(
                f"Sequences of {length} tokens are longer than the model's context of {shape.context_length}.",
                field=f"{part}.sequence_length",
            )
