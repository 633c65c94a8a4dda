"""Before a job is queued: what it would need on its pool, and what its artifact would be.

All of it comes from sizes alone (contracts.families); nothing is loaded. The formulas are in core/estimates.py.
"""

import re
from collections.abc import Iterator

from paredown.contracts import checkpoints, gguf
from paredown.contracts.artifact import BaseModelRecord
from paredown.contracts.families import ModelShape
from paredown.contracts.gate import unmeasurable
from paredown.contracts.job import Format, JobSpec, Plan
from paredown.contracts.recipes import (
    Awq,
    Depth,
    EightBit,
    Family,
    Mixed,
    SmoothQuant,
    Stage,
    Training,
    UniformGrid,
    WeightGrid,
    quantizer,
    recipe_hash,
    recipe_name,
    shape_left,
    storing,
)
from paredown.contracts.recipes.pruning import Pruner
from paredown.contracts.recipes.quantization import SUPER_BLOCK
from paredown.contracts.runtimes import VLLM_BITS
from paredown.core.errors import (
    BaselineUnknown,
    BudgetUnmeasurable,
    PlanExceeded,
    PoolUnknown,
    RecipeRefused,
    RuntimeUnavailable,
)
from paredown.core.estimates import (
    DOWNLOAD_BYTES_PER_SECOND,
    PROCESS_BYTES,
    calibration_tokens,
    checkpoint_bytes,
    evaluation_tokens,
    is_asymmetric,
    memory_of,
    seconds_of,
    statistics_bytes,
    surveyed_states,
    trained_bytes,
)
from paredown.core.settings import Pool, Settings
from paredown.core.sizes import output_bytes, touched
from paredown.core.sources.base import ModelDescription

# Statistics of fewer tokens than this describe few layers well; GPTQ's and Wanda's papers use 128 × 2048.
FEW_TOKENS = 4096


def make_plan(spec: JobSpec, description: ModelDescription, settings: Settings) -> Plan:
    """What the job would need on its pool. Raises PoolUnknown, PlanExceeded, RecipeRefused, BudgetUnmeasurable,
    RuntimeUnavailable."""
    shape = description.shape
    _check_measurable(spec, base_is_here=description.base is None)
    if spec.resolved_format is Format.GGUF and (reason := gguf.model_refusal(description.config)):
        raise RecipeRefused(reason, field="format")
    name, pool = _pool_of(spec, settings)
    asks_vllm = "vllm" in (spec.evaluation.runtimes or ())
    if asks_vllm and pool.runtimes is not None and "vllm" not in pool.runtimes:
        raise RuntimeUnavailable(
            f"The workers of the pool {name} have no vLLM; choose another pool, or leave vllm out.",
            field="evaluation.runtimes",
        )
    memory = memory_of(shape, spec, pool.device)
    limit = pool.memory_bytes
    pausing = limit is None or memory.pausing <= limit
    needed = memory.pausing if pausing else memory.rerunning
    if limit is not None and needed > limit:
        raise PlanExceeded(
            f"The job needs about {_gib(needed)} of memory; a worker of the pool {name} has {_gib(limit)}. Choose "
            "another pool, fewer calibration samples, or bfloat16.",
            field="pool",
        )
    output = output_bytes(shape, spec.recipe, spec.resolved_format)
    seconds = seconds_of(shape, spec, pool.device, settings.engine_threads, pausing).total
    seconds += description.download_bytes / DOWNLOAD_BYTES_PER_SECOND
    number = 4 if spec.dtype == "float32" else 2
    # Checkpoint: the finished blocks, dense and packed, and the hidden states, where the base runs beside its too; then
    # the artifact itself.
    states = calibration_tokens(spec) * (2 if is_asymmetric(spec) else 1)
    checkpoint = checkpoint_bytes(shape, output) + states * shape.hidden_size * number
    checkpoint += surveyed_states(shape, spec) * shape.hidden_size * number + trained_bytes(shape, spec)
    # What enters the base's head, to compare the artifact with.
    checkpoint += evaluation_tokens(spec) * shape.hidden_size * number
    disk = description.download_bytes + checkpoint + output + statistics_bytes(shape, spec)
    if spec.resolved_format is Format.GGUF and spec.evaluation.speed and description.base is None:
        # The base in GGUF, beside which speed is measured.
        disk += shape.base_bytes
    if asks_vllm and description.gguf_file and spec.evaluation.speed:
        # The base out of GGUF, likewise.
        disk += shape.base_bytes
    return Plan(
        model=spec.model,
        model_type=shape.model_type,
        parameters=shape.parameters,
        base_bytes=description.base_bytes,
        recipe_name=recipe_name(spec.recipe),
        recipe_hash=recipe_hash(spec.recipe),
        format=spec.resolved_format,
        pool=name,
        memory_bytes=needed,
        device_memory_bytes=needed - PROCESS_BYTES if pool.device == "cuda" else None,
        disk_bytes=disk,
        download_bytes=description.download_bytes,
        output_bytes=output,
        size_ratio=output / description.base_bytes,
        seconds=seconds,
        cost=seconds / 3600 * pool.price_per_hour,
        currency=settings.currency,
        pausing=pausing,
        warnings=tuple(_warnings(description, spec, output, limit)),
    )


def without_baseline(plan: Plan, spec: JobSpec, base: BaseModelRecord) -> Plan:
    """The plan of an artifact's further compression, whose base was not measured under the job's evaluation yet.

    Raises BaselineUnknown where the budget needs that figure.
    """
    sentence = f"The base, {base.uri}, has not been measured under this evaluation, and this job will not measure it"
    if spec.budget and spec.budget.max_perplexity_increase is not None:
        raise BaselineUnknown(
            f"{sentence}; submit a job on the base with the same evaluation, dtype and pool first, or leave "
            "max_perplexity_increase out.",
            field="budget.max_perplexity_increase",
        )
    warning = f"{sentence}, so the report will have no figures of the base beside those of the artifact."
    return plan.model_copy(update={"warnings": (*plan.warnings, warning)})


def _check_measurable(spec: JobSpec, *, base_is_here: bool) -> None:
    """Raises BudgetUnmeasurable for the first term whose figure the job will not measure."""
    if spec.budget is None:
        return
    for name, reason in unmeasurable(
        spec.budget, evaluated=True, speed=spec.evaluation.speed, base_is_here=base_is_here
    ):
        raise BudgetUnmeasurable(
            f"The budget has {name}, which cannot be checked: {reason}. Leave the term out, or measure it.",
            field=f"budget.{name}",
        )


def _pool_of(spec: JobSpec, settings: Settings) -> tuple[str, Pool]:
    needs_gpu = next((stage.title for stage in spec.recipe if stage.needs_gpu), None)
    name = spec.pool or settings.default_pool
    if name not in settings.pools:
        known = ", ".join(sorted(settings.pools))
        raise PoolUnknown(f"There is no pool {name!r}; there are {known}.", field="pool")
    if needs_gpu and settings.pools[name].device != "cuda":
        if spec.pool is not None:
            raise RecipeRefused(f"{needs_gpu} needs a GPU, and the pool {name} has none.", field="pool")
        gpus = [other for other, pool in settings.pools.items() if pool.device == "cuda"]
        if not gpus:
            raise PoolUnknown(f"{needs_gpu} needs a GPU, and no pool here has one.", field="recipe")
        name = gpus[0]
    return name, settings.pools[name]


def _warnings(description: ModelDescription, spec: JobSpec, output: int, memory_limit: int | None) -> Iterator[str]:
    shape, base_bytes = description.shape, description.base_bytes
    grid = quantizer(spec.recipe)
    left = shape
    widths = grid.widths if grid is not None else ()
    if grid is not None and widths[0] <= 3 and not grid.needs_calibration:
        yield f"{widths[0]} bits without calibration cost much accuracy; gptq keeps more of it."
    elif (bits := _bits_each(grid)) is not None and bits < 4:
        yield (
            f"Under 4 bits a weight ({bits:g} here) models lose more accuracy than the bytes are worth, most at small "
            "sizes (arXiv:2212.09720); measure tasks, not perplexity alone."
        )
    if isinstance(grid, UniformGrid) and grid.k_quant and widths != (8,):
        yield from _without_super_blocks(shape_left(shape, spec.recipe), grid)
    elif isinstance(grid, UniformGrid) and widths == (2,) and grid.symmetric:
        yield "2 bits on a symmetric grid leave one value above zero; symmetric: false keeps more accuracy."
    if spec.resolved_format is Format.COMPRESSED_TENSORS and not set(widths) <= set(VLLM_BITS):
        unread = " and ".join(str(bits) for bits in widths if bits not in VLLM_BITS)
        yield f"vLLM has no kernel for {unread}-bit weights; the artifact loads in transformers only."
    stage = storing(spec.recipe)
    if stage is not None and spec.resolved_format is Format.SAFETENSORS:
        how = "quantized weights" if stage.family is Family.QUANTIZATION else "the product of two factors"
        yield f"safetensors stores {how} dense, so the artifact is no smaller than the base."
    if stage is not None and spec.resolved_format is Format.NATIVE:
        yield "A native artifact loads with paredown.engine.formats.native.load only; no other runtime reads it."
    calibrated = stage is not None and stage.needs_calibration
    if calibrated and shape.has_experts and spec.calibration.unreached_experts == "dense":
        yield "Experts that calibration does not reach stay dense, so the artifact may be larger than planned."
    if spec.resolved_format in checkpoints.BITS:
        assert isinstance(grid, WeightGrid), "the format was checked"
        yield (
            "A worker loads this artifact with paredown.engine.formats.native.load; transformers reads it where "
            "gptqmodel is installed."
        )
        if not checkpoints.is_for_vllm(spec.resolved_format, grid):
            yield (
                "vLLM's kernels for gptq take 4 or 8 bits, a symmetric grid and groups of up to 128; this artifact is "
                "for transformers only."
            )
    for stage in spec.recipe:
        if isinstance(stage, Pruner) and stage.share > 0.5:
            yield f"Pruning {stage.share:.0%} at once without retraining usually breaks a model; most bear 50 %."
        if isinstance(stage, Depth) and not any(isinstance(other, Training) for other in spec.recipe):
            gone = stage.dropped(left.num_blocks)
            if gone > 0.3 * left.num_blocks:
                yield (
                    f"Dropping {gone} of {left.num_blocks} blocks without retraining usually breaks a model; most bear "
                    "a fifth."
                )
        if isinstance(stage, Awq | SmoothQuant) and (fixed := _unscalable(left, stage)):
            yield (
                f"{stage.title} can scale no inputs of {', '.join(fixed)} in this model, because nothing before them "
                "takes the scale; they are rounded as they are."
            )
        left = stage.shape_after(left)
    tokens = calibration_tokens(spec)
    if 0 < tokens < FEW_TOKENS:
        yield f"{tokens} calibration tokens are few; from {FEW_TOKENS} on the statistics are steady."
    if spec.budget and spec.budget.max_size_ratio is not None and output / base_bytes > spec.budget.max_size_ratio:
        yield (
            f"The artifact will have about {output / base_bytes:.1%} of the base bytes; the budget allows "
            f"{spec.budget.max_size_ratio:.1%}, so the job will end rejected."
        )
    loaded = output if spec.resolved_format is Format.GGUF else shape.parameters * (4 if spec.dtype == "float32" else 2)
    whole = loaded + PROCESS_BYTES
    if memory_limit is not None and whole > memory_limit:
        yield (
            f"Reloading the artifact in a clean process takes about {_gib(whole)}, more than a worker of the pool has, "
            "so no runtime will be claimed for it."
        )


def _bits_each(grid: UniformGrid | EightBit | None) -> float | None:
    """Bits of a code, on average where layers differ."""
    if isinstance(grid, Mixed):
        return grid.average_bits
    return float(grid.widths[0]) if grid is not None else None


def _without_super_blocks(shape: ModelShape, grid: UniformGrid) -> Iterator[str]:
    plain = {linear.name: linear.in_features for _, linear in touched(shape, grid) if linear.in_features % SUPER_BLOCK}
    if plain:
        named = ", ".join(f"{name} ({width})" for name, width in plain.items())
        yield (
            f"K-quants need rows of a multiple of {SUPER_BLOCK} weights, which these layers have not: {named}. They "
            "get plain blocks of 32: Q4_0 in the place of 2, 3 and 4 bits, Q5_0 of 5 and Q8_0 of 6."
        )


def _unscalable(shape: ModelShape, stage: Stage) -> list[str]:
    """Linears of a block that the stage compresses, and whose input no scale can be taken of."""
    names = {linear.name for _, linear in touched(shape, stage)}
    fixed = [linear.name for linear in shape.linears if linear.name in names - set(shape.scalable)]
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in fixed))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
