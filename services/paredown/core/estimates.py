"""What a job would need: bytes of the artifact, memory, time. From sizes alone, each formula beside its reason.

The artifact's bytes are exact to 2 %; memory and time are estimates.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce

from paredown.contracts import gguf
from paredown.contracts.families import LinearShape, ModelShape
from paredown.contracts.job import Format, JobSpec
from paredown.contracts.recipes import (
    Awq,
    Bonsai,
    Depth,
    Distil,
    EightBit,
    Esparse,
    Gptq,
    Laco,
    LlmPruner,
    Mixed,
    Owq,
    Quantizer,
    SmoothQuant,
    Squeezellm,
    Stage,
    Svd,
    Training,
    WeightGrid,
    Width,
    quantizer,
    storing,
)
from paredown.contracts.recipes.pruning import parse_pattern
from paredown.contracts.tasks import TASKS

# Methods that gather XᵀX of every layer's input, and solve with it.
_HESSIAN_METHODS = ("gptq", "owq", "squeezellm", "sparsegpt", "awq", "smoothquant", "fp8-gptq", "svd", "mixed")

# Tokens that SmoothQuant tries its exponents on (engine/statistics.py).
_SAMPLED_TOKENS = 256
# Rows of a layer on which each choice of bits is tried (engine/methods/mixed.py).
_TRIED_ROWS = 128

# Sub-models whose hidden states exist at once (engine/methods/bonsai.py).
_SUBMODELS_AT_ONCE = 8

# Tokens that a forward pass would have read while a runtime writes its texts (engine/evaluation/generation.py).
_WRITING_TOKENS = 1000

# Rows of a layer on which a scale of AWQ's is judged (engine/methods/awq.py); at most twice as many.
_JUDGED_ROWS = 256

# Rows of a layer, and rounds over all its groups, in which channels exchange places (engine/shuffle.py).
_EXCHANGING_ROWS = 256
_EXCHANGING_ROUNDS = 12

# A step of training is many small operations, at half of a forward pass's rate.
_TRAINING_SLOWNESS = 2

# How many a search for GPTQ's damping tries.
_DAMPINGS = 5


def skipped(stage: Stage, name: str) -> bool:
    """Whether the stage leaves the linear layer of this full name as it is."""
    return any(fnmatchcase(name, pattern) for pattern in stage.skip)


def is_calibrated(spec: JobSpec) -> bool:
    return any(stage.needs_calibration for stage in spec.recipe)


def shape_after(shape: ModelShape, stage: Stage) -> ModelShape:
    """What a stage leaves of a shape that it is given."""
    if isinstance(stage, Depth):
        return shape.without_blocks(stage.dropped(shape.num_blocks))
    if isinstance(stage, Width):
        return shape.narrowed(stage.channels_left(shape.mlp_channels), shape.kv_heads - stage.head_groups)
    return shape


def shape_left(shape: ModelShape, recipe: tuple[Stage, ...]) -> ModelShape:
    """The shape of the artifact."""
    return reduce(shape_after, recipe, shape)


def output_bytes(shape: ModelShape, recipe: tuple[Stage, ...], file_format: Format) -> int:
    """Bytes of the artifact's weight files, safetensors headers included. `file_format` is resolved, not auto."""
    shape = shape_left(shape, recipe)
    last = storing(recipe)
    if file_format is Format.GGUF:
        grid = _least(quantizer(recipe))
        assert grid is None or isinstance(grid, WeightGrid), "GGUF cannot say how activations are rounded"
        return _gguf_bytes(shape, grid) + _above_least(shape, last, wide=True)
    stage = _least(last) if file_format is not Format.SAFETENSORS else None
    total = 2 * (shape.other_parameters + shape.num_blocks * shape.block_other_parameters)
    if isinstance(last, Quantizer) and last.embeddings == 8:
        total -= shape.embedding_parameters
    header = _HEADER_FIXED_BYTES
    for name, linear in shape.named_linears():
        tensors: list[tuple[str, str, tuple[int, ...]]] = [
            (".weight", "BF16", (linear.out_features, linear.in_features))
        ]
        if stage is not None and not skipped(stage, name):
            tensors = list(_stored_tensors(linear, stage, file_format))
        for suffix, dtype, dimensions in tensors:
            total += math.prod(dimensions) * _DTYPE_BYTES[dtype]
            header += _header_entry_bytes(name + suffix, dtype, dimensions, total)
    vector = _header_entry_bytes("model.layers.0.self_attn.q_norm.weight", "BF16", (shape.hidden_size,), total)
    above = _above_least(shape, last) if stage is not None else 0
    return total + header + vector * _other_tensors(shape) + above


def quantized_layers(shape: ModelShape, stage: Stage) -> list[tuple[int, int]]:
    """Output and input features of every linear that a stage does not skip."""
    return [
        (linear.out_features, linear.in_features) for name, linear in shape.named_linears() if not skipped(stage, name)
    ]


def _least(stage: Stage | None) -> Stage | None:
    """A stage that stores weights; where bits are chosen layer by layer, what the layers of the fewest go through."""
    return stage.at(stage.choices[0]) if isinstance(stage, Mixed) else stage


def _above_least(shape: ModelShape, stage: Stage | None, *, wide: bool = False) -> int:
    """Bytes of layers that get more than the fewest bits: the budget is used up but for less than a layer's step."""
    if not isinstance(stage, Mixed):
        return 0
    layers = quantized_layers(shape, stage)
    least, _ = stage.reach(layers, wide=wide)
    return int((stage.average_bits - least) * sum(rows * columns for rows, columns in layers) / 8)


_DTYPE_BYTES = {"I8": 1, "F8_E4M3": 1, "U8": 1, "BF16": 2, "F16": 2, "U16": 2, "I32": 4, "I64": 8}
# Eight bytes of length, braces, and {"format":"pt"}.
_HEADER_FIXED_BYTES = 48


_Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


def _stored_tensors(linear: LinearShape, stage: Stage, file_format: Format) -> _Tensors:
    """What a format stores for a linear: names, dtypes, shapes."""
    match file_format:
        case Format.NATIVE:
            return _native_tensors(linear, stage)
        case Format.GPTQ | Format.AWQ:
            return _checkpoint_tensors(linear, stage, file_format)
    return _packed_tensors(linear, stage)


def _checkpoint_tensors(linear: LinearShape, grid: Stage, file_format: Format) -> _Tensors:
    """The layouts of AutoGPTQ and AutoAWQ, whose zero points are stored where the grid is symmetric too."""
    assert isinstance(grid, WeightGrid), "the format was checked"
    rows, columns = linear.out_features, linear.in_features
    groups = columns // (grid.group_size or columns)
    yield ".qweight", "I32", (columns, rows * grid.bits // 32)
    yield ".qzeros", "I32", (groups, rows * grid.bits // 32)
    yield ".scales", "F16", (groups, rows)
    if file_format is Format.GPTQ:
        yield ".g_idx", "I32", (columns,)


def _native_tensors(linear: LinearShape, stage: Stage) -> _Tensors:
    """What the native format stores for a linear, as engine/formats/layout.py says: names, dtypes, shapes."""
    rows, columns = linear.out_features, linear.in_features
    if isinstance(stage, Svd):
        rank = stage.rank(rows, columns)
        yield ".left", "BF16", (rows, rank)
        yield ".right", "BF16", (rank, columns)
    if isinstance(stage, Squeezellm):
        kept = sum(stage.kept(columns))
        yield ".codes", "U8", (rows, -(-columns * stage.bits // 8))
        yield ".codebooks", "BF16", (rows, 2**stage.bits)
        if kept:
            yield ".positions", "U16" if columns <= 2**16 else "I32", (rows, kept)
            yield ".kept", "BF16", (rows, kept)
    if isinstance(stage, WeightGrid):
        groups = columns // (stage.group_size or columns)
        yield ".codes", "U8", (rows, -(-columns * stage.bits // 8))
        yield ".scales", "BF16", (rows, groups)
        if not stage.symmetric:
            yield ".zeros", "U8", (rows, -(-groups * stage.bits // 8))
    if isinstance(stage, Owq) and (weak := stage.weak(columns)):
        yield ".columns", "I32", (weak,)
        yield ".weak", "BF16", (rows, weak)


def _packed_tensors(linear: LinearShape, grid: Stage) -> _Tensors:
    """What compressed-tensors stores for a linear: names, dtypes, shapes.

    In pack-quantized, codes lie dense in 32-bit words along each row, zero points along the columns of groups.
    """
    rows, columns = linear.out_features, linear.in_features
    if isinstance(grid, EightBit):
        yield ".weight", "I8" if grid.number == "int" else "F8_E4M3", (rows, columns)
        yield ".weight_scale", "BF16", (rows, 1)
        if not grid.is_dynamic:
            yield ".input_scale", "BF16", (1,)
        return
    assert isinstance(grid, WeightGrid), "the format was checked"
    groups = columns // grid.group_size if grid.group_size is not None else 1
    yield ".weight_packed", "I32", (rows, -(-columns * grid.bits // 32))
    yield ".weight_scale", "BF16", (rows, groups)
    yield ".weight_shape", "I64", (2,)
    if not grid.symmetric:
        yield ".weight_zero_point", "I32", (-(-rows * grid.bits // 32), groups)


# Of the packaged model: 16 bytes of token, 16 of merge and 4 of type for each entry of the vocabulary.
_VOCABULARY_ENTRY_BYTES = 36
_GGUF_METADATA_BYTES = 2000
_GGUF_TENSOR_BYTES = 64


def _gguf_bytes(shape: ModelShape, grid: WeightGrid | None) -> int:
    """One GGUF file: codes, embeddings as a quantizing stage wants them, vectors in float32, and the tokenizer."""
    embeddings = shape.vocab_size * (1 if shape.tied_embeddings else 2)
    others = shape.other_parameters - embeddings * shape.hidden_size
    total = 4 * (others + shape.num_blocks * shape.block_other_parameters)
    total += embeddings * _gguf_row_bytes(gguf.embedding_type(grid, shape.hidden_size), shape.hidden_size)
    for name, linear in shape.named_linears():
        coded = grid is not None and not skipped(grid, name)
        kind = gguf.GRID_TYPES[grid.bits, grid.symmetric] if grid is not None and coded else None
        total += linear.out_features * _gguf_row_bytes(kind, linear.in_features)
        total += _GGUF_TENSOR_BYTES
    total += _GGUF_TENSOR_BYTES * _other_tensors(shape)
    return total + _GGUF_METADATA_BYTES + _VOCABULARY_ENTRY_BYTES * shape.vocab_size


def _gguf_row_bytes(kind: str | None, width: int) -> int:
    """Bytes of a row in a block type, or in 16 bits."""
    return 2 * width if kind is None else width // gguf.BLOCK_WEIGHTS * gguf.BLOCK_BYTES[kind]


def _header_entry_bytes(name: str, dtype: str, dimensions: tuple[int, ...], offset: int) -> int:
    entry = {name: {"dtype": dtype, "shape": dimensions, "data_offsets": [offset, offset]}}
    return len(json.dumps(entry, separators=(",", ":"))) - 1  # less two braces, plus a comma


def _other_tensors(shape: ModelShape) -> int:
    """Tensors besides the linears: norms and biases, of a vector each, and some four for the whole model."""
    vectors = shape.block_other_parameters / max(shape.hidden_size, 1)
    return 4 + shape.num_blocks * max(2, min(16, round(vectors)))


# A process that has imported torch and transformers and read a tokenizer; measured resident size on Linux.
PROCESS_BYTES = 560 * 2**20
CUDA_CONTEXT_BYTES = 600 * 2**20
# What was freed between pieces still in use, and what libraries hold beside the sums below. With it, 20 of 24 recipes
# on the packaged model peaked within 15 % of their plans (docs/performance.md).
_FRAGMENTATION = 1.25
# Hidden states of tasks (engine/evaluation/task_models.py); lm-eval with its data library once imported (107 MiB of
# resident size on Linux), and its requests.
_TASK_STATES_BYTES = 512 * 2**20
_HARNESS_BYTES = 150 * 2**20
# How many times longer a token takes that is written than one that is read (135 M parameters on two cores).
_WRITING = 10
# Prompts and answers of engine/evaluation/refusal.py.
_REFUSAL_TOKENS = 40 * 96
# As the engine cuts its work (engine/forward.py, engine/evaluation/perplexity.py, engine/formats/files.py).
_MICRO_BATCH_TOKENS = 4096
_HEAD_TOKENS = 128
# In the backward pass of stages that look at gradients.
_GRADIENT_HEAD_TOKENS = 512
_SHARD_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Memory:
    """Peak of the engine's process, with and without paused activations; and that of the parts of a job that are no
    block's or read no text: whole shards on their way to disk, stages across blocks, tasks."""

    pausing: int
    rerunning: int
    beyond_blocks: int


def memory_of(shape: ModelShape, spec: JobSpec, device: str) -> Memory:
    """Peak bytes: embeddings + one block + its statistics + its activations, whatever the model's depth."""
    number = 4 if spec.dtype == "float32" else 2
    linear_parameters = sum(linear.weights for linear in shape.linears)
    block_parameters = linear_parameters + shape.block_other_parameters
    process = PROCESS_BYTES + (CUDA_CONTEXT_BYTES if device == "cuda" else 0)
    outer = shape.other_parameters * number
    # The block for the forward, its source, and one group of linears in float32 with its result.
    block = block_parameters * (number + 2) + 3 * 4 * max(linear.weights for linear in shape.linears)
    calibrated, evaluated = calibration_tokens(spec), evaluation_tokens(spec)
    widest = max(linear.in_features for linear in shape.linears)
    # A Hessian in float32; to factor it in float64, the damped matrix, its inverse and the factor beside it. A search
    # for the damping keeps a factor of each that it tries.
    kept = 4 * (_DAMPINGS - 1) if _searches_damping(spec) else 0
    if any(isinstance(stage, Owq) for stage in spec.recipe):
        # The same Hessian in the order of work.
        kept += 4
    # SmoothQuant's Hessian is of the smoothed input, beside the one that was gathered.
    kept += 4 if any(isinstance(stage, SmoothQuant) for stage in spec.recipe) else 0
    statistics = (4 + 3 * 8 + kept) * widest**2 if _needs_hessian(spec) else 4 * widest
    block_statistics = 4 * sum(linear.in_features**2 for linear in _distinct_inputs(shape))
    if _keeps_statistics(spec):
        # Written as a whole, and copied on the way.
        statistics += 2 * block_statistics
    # Hidden states entering and leaving the block.
    states = 2 * shape.hidden_size * number
    # One token's activations inside a block: residual, normed input, queries, keys, values, the mixed heads and the
    # MLP's gate, up and product; what a paused forward may hold at its widest.
    inside = number * (3 * shape.hidden_size + 3 * max(linear.out_features for linear in shape.linears))
    # Where attention is not fused, a block holds its scores of every pair of tokens while its forward waits, and twice
    # as much for one micro-batch, partly in float32, while they are computed.
    length = max(spec.evaluation.sequence_length, spec.calibration.sequence_length if calibrated else 0)
    inside += number * shape.score_heads * length
    micro_batch = min(_MICRO_BATCH_TOKENS, max(calibrated, evaluated))
    # Logits of so many positions in float32, and three more of that size inside the loss.
    logits = 4 * 4 * shape.vocab_size * _HEAD_TOKENS
    # To compare them, the base's head beside the artifact's, and its logits with what their distance takes.
    compared = shape.vocab_size * shape.hidden_size * number + logits
    evaluation = outer + block_parameters * (number + 2) + evaluated * states + micro_batch * inside + logits + compared
    tasks = 0
    if scored := _task_tokens(spec):
        # Hidden states of as many requests as one pass holds, and what lm-eval and its data library take.
        kept = min(_TASK_STATES_BYTES, scored * shape.hidden_size * number)
        batch = min(_MICRO_BATCH_TOKENS, scored) * inside
        evaluation = max(evaluation, outer + block_parameters * (number + 2) + kept + batch + logits)
        evaluation += _HARNESS_BYTES
        tasks = evaluation
    writing = min(output_bytes(shape, spec.recipe, spec.resolved_format), _SHARD_BYTES)
    if any(isinstance(stage, Svd) for stage in spec.recipe):
        # The weight, the weight times its inputs' factor and both factors of the result, in float64.
        block += 4 * 8 * max(linear.weights for linear in shape.linears)
    compression = outer + block + (statistics + calibrated * states if calibrated else 0)
    scores = micro_batch * shape.score_heads * length * (number + 4)
    # Of stages that look across blocks.
    across = 0
    for bonsai in (stage for stage in spec.recipe if isinstance(stage, Bonsai)):
        # Sub-models that run at once, each with hidden states of its own, and the loss.
        tried = _submodel_tokens(bonsai, spec) * shape.hidden_size * number
        across = max(across, outer + block + tried + logits)
    if any(isinstance(stage, LlmPruner | Mixed) for stage in spec.recipe):
        # The block and its gradient, both again in float32, a micro-batch's activations with theirs, and the loss.
        head = 2 * 4 * shape.vocab_size * _GRADIENT_HEAD_TOKENS
        gradients = 2 * block_parameters * (number + 4) + 2 * micro_batch * inside + head
        if any(isinstance(stage, Mixed) for stage in spec.recipe):
            # Second moments of all inputs of a block at once, where the pass through linears has one input's.
            gradients += statistics + block_statistics
        across = max(across, outer + gradients + calibrated * states)
    across = max(across, *(_training_bytes(*given, number) for given in trainings(shape, spec)), 0)
    compression = max(compression, across)

    def held(size_bytes: int) -> int:
        return process + int(_FRAGMENTATION * size_bytes)

    def peak(activations: int) -> int:
        return held(max(scores + max(compression + activations, evaluation), writing))

    one_batch = peak(min(calibrated, micro_batch) * inside)
    # Only linear stages pause forwards; a survey of blocks runs one micro-batch after the other, and so does the pass
    # that gathers dense statistics.
    pausing = _streams(spec) and not _keeps_statistics(spec)
    return Memory(
        pausing=peak(calibrated * inside) if pausing else one_batch,
        rerunning=one_batch,
        beyond_blocks=held(max(scores + max(across, tasks), writing)),
    )


def calibration_tokens(spec: JobSpec) -> int:
    return spec.calibration.samples * spec.calibration.sequence_length if is_calibrated(spec) else 0


def _keeps_statistics(spec: JobSpec) -> bool:
    """Whether statistics of the whole model lie on disk."""
    return _streams(spec) and spec.calibration.statistics == "dense"


def checkpoint_bytes(shape: ModelShape, output: int) -> int:
    """Finished blocks in the checkpoint, which keeps their weights dense and packed."""
    return 2 * shape.linear_parameters + output


def statistics_bytes(shape: ModelShape, spec: JobSpec) -> int:
    """On disk, where calibration asks for dense statistics."""
    if not _keeps_statistics(spec):
        return 0
    return 4 * shape.num_blocks * sum(linear.in_features**2 for linear in _distinct_inputs(shape))


def _distinct_inputs(shape: ModelShape) -> list[LinearShape]:
    """One linear for each input of a block."""
    return [linear for linear in shape.linears if not linear.shares_input]


def _submodel_tokens(stage: Bonsai, spec: JobSpec) -> int:
    """Hidden states, one token's each, of the sub-models that run at once."""
    samples = min(stage.samples, spec.calibration.samples)
    return min(stage.submodels, _SUBMODELS_AT_ONCE) * samples * spec.calibration.sequence_length


def _streams(spec: JobSpec) -> bool:
    """Whether the calibration tokens run through the linear stages."""
    return any(stage.needs_calibration and not isinstance(stage, Depth | Width | Training) for stage in spec.recipe)


def _surveys(shape: ModelShape, spec: JobSpec) -> Iterator[tuple[Stage, ModelShape, int]]:
    """Each stage that looks across blocks, the shape that it is given, and the tokens that it runs through it."""
    for stage in spec.recipe:
        if isinstance(stage, Depth | Width | Mixed):
            samples = spec.calibration.samples
            samples = min(stage.samples, samples) if isinstance(stage, Laco) else samples
            yield stage, shape, samples * spec.calibration.sequence_length
        shape = shape_after(shape, stage)


def surveyed_states(shape: ModelShape, spec: JobSpec) -> int:
    """Hidden states, one token's each, that stages across blocks leave on disk."""
    # To resume, what enters two blocks; to try merges and to go backwards, what enters every block.
    return sum(
        2 * max(tokens, _submodel_tokens(stage, spec))
        if isinstance(stage, Bonsai)
        else tokens * (2 + (given.num_blocks if isinstance(stage, Laco | LlmPruner | Mixed) else 0))
        for stage, given, tokens in _surveys(shape, spec)
    )


def _survey_flops(shape: ModelShape, spec: JobSpec) -> float:
    def passes(stage: Stage, given: ModelShape) -> float:
        if isinstance(stage, Bonsai):
            return stage.passes(spec.calibration.samples)
        if isinstance(stage, Laco):
            # It tries a merge at most blocks, mostly at two thresholds, and runs half of the model each time.
            return 1 + given.num_blocks
        # Backwards the block runs once more, and twice its work goes into the gradients.
        return 4 if isinstance(stage, LlmPruner | Mixed) else 1

    return sum(
        passes(stage, given) * 2 * given.active_parameters * tokens for stage, given, tokens in _surveys(shape, spec)
    )


def trainings(shape: ModelShape, spec: JobSpec) -> Iterator[tuple[ModelShape, ModelShape, Training]]:
    """(the base, the shape that it is given, the stage) of each stage that trains."""
    base = shape
    for stage in spec.recipe:
        if isinstance(stage, Training):
            yield base, shape, stage
        shape = shape_after(shape, stage)


def _adapter_parameters(shape: ModelShape, stage: Training) -> int:
    """Those of one adapter for each linear that is not skipped."""
    return sum(
        stage.rank * (linear.out_features + linear.in_features)
        for name, linear in shape.named_linears()
        if not skipped(stage, name)
    )


def _is_block_wise(stage: Training) -> bool:
    return isinstance(stage, Distil) and stage.block_wise


def _training_bytes(base: ModelShape, shape: ModelShape, stage: Training, number: int) -> int:
    """Beside the process: weights, adapters, and the activations of one block for a micro-batch."""
    tokens = stage.batch_size * stage.sequence_length
    micro_batch = min(tokens, max(_MICRO_BATCH_TOKENS, stage.sequence_length))
    widths = sum(linear.out_features + linear.in_features for linear in shape.linears)
    # Of one block, what each linear reads and gives, once more for the gradients, and half of it again for all between.
    inside = int(2.5 * number * widths) + 2 * number * shape.score_heads * stage.sequence_length
    # Each parameter with its gradient and two moments, in float32.
    adapters = 16 * _adapter_parameters(shape, stage)
    if _is_block_wise(stage):
        block = shape.linear_parameters // shape.num_blocks + shape.block_other_parameters
        # The hidden states of both models for all tokens, and copies of a micro-batch in float32.
        states = 2 * number * stage.trained_tokens * shape.hidden_size
        outer = (base.other_parameters + shape.other_parameters) * number
        return outer + 2 * block * (number + 2) + adapters // shape.num_blocks + states + micro_batch * inside
    weights = shape.parameters + (base.parameters if isinstance(stage, Distil) else 0)
    # What entered each block, of a batch; logits and their gradients in float32, of both models where there are two.
    entering = number * tokens * shape.hidden_size * shape.num_blocks
    logits = (4 if isinstance(stage, Distil) else 2) * 4 * shape.vocab_size * _GRADIENT_HEAD_TOKENS
    return weights * number + adapters + entering + micro_batch * inside + logits


def trained_bytes(shape: ModelShape, spec: JobSpec) -> int:
    """What stages that train leave on disk: adapters, and what a resumed run goes on from, twice."""
    number = 4 if spec.dtype == "float32" else 2
    total = 0
    for _, given, stage in trainings(shape, spec):
        adapters = 4 * _adapter_parameters(given, stage)
        if _is_block_wise(stage):
            total += adapters + 2 * 2 * number * stage.trained_tokens * given.hidden_size
        else:
            total += adapters + 2 * 3 * adapters
    return total


def _training_flops(base: ModelShape, shape: ModelShape, stage: Training) -> float:
    # A forward pass, each block once more on the way back, the gradients of its inputs, and the adapters.
    passes = 3.5 * shape.active_parameters
    head = 0 if _is_block_wise(stage) else 2 * shape.vocab_size * shape.hidden_size
    if isinstance(stage, Distil):
        passes += base.active_parameters
        head *= 2
    return _TRAINING_SLOWNESS * 2 * (passes + head) * stage.trained_tokens


def _needs_hessian(spec: JobSpec) -> bool:
    return any(stage.method in _HESSIAN_METHODS for stage in spec.recipe)


def _searches_damping(spec: JobSpec) -> bool:
    return any(isinstance(stage, Gptq) and stage.damping_search for stage in spec.recipe)


def _judged_rows(linear: LinearShape) -> int:
    return linear.out_features // max(1, linear.out_features // _JUDGED_ROWS)


def _factorizing_flops(linear: LinearShape) -> float:
    """The weight times its inputs' factor, its square on the smaller side, and that square's eigenvectors."""
    smaller = min(linear.out_features, linear.in_features)
    return 2 * linear.weights * (linear.in_features + smaller) + 25 * smaller**3


def evaluation_tokens(spec: JobSpec) -> int:
    return spec.evaluation.samples * spec.evaluation.sequence_length


def _task_tokens(spec: JobSpec, *, written: bool = False) -> int:
    """Tokens of the tasks that score text, or of those that have it written, as such rows have them on the whole."""
    return sum(
        min(task.limit or definition.rows, definition.rows) * definition.tokens * (1 + task.num_fewshot)
        for task in spec.evaluation.tasks
        if (definition := TASKS[task.name]).generates is written
    )


@dataclass(frozen=True)
class Throughput:
    """What a kind of device does in a second, on the work of this engine."""

    flops: dict[str, float]  # of a block's forward, by dtype
    quantized_weights: float  # weights rounded, scales searched
    solved_weights: float  # weights through GPTQ's columns
    clustered_weights: float  # weights through k-means
    exchanged_weights: float  # weights' scores added up for an exchange of channels
    start_seconds: float  # process start, reload in a clean process


# cpu: the 135 M model on two cores of an EPYC with AVX-512: 37 s forward, 27 s Hessians, 29 s solve for 32 × 512 tokens
# in float32. Matrix products alone reach 98 GFLOP/s there in float32, and 370 in bfloat16, of which half is kept.
# cuda: derived, not measured: a third of an H200's published rates, because a block of a small model does not fill it.
_THROUGHPUT = {
    "cpu": Throughput({"float32": 9.4e10, "bfloat16": 1.9e11}, 1.2e7, 4.8e6, 2.3e6, 5.7e7, 25),
    "cuda": Throughput({"float32": 2e13, "bfloat16": 2.5e14}, 4e9, 2e7, 5e8, 1e10, 40),
}
_MEASURED_THREADS = 2
# Plain roundings in the time of one search for scales.
_PLAIN_ROUNDINGS = 8
DOWNLOAD_BYTES_PER_SECOND = 50e6


@dataclass(frozen=True)
class Seconds:
    """What the parts of a job take: a process to start, the linear stages on all blocks, and forward passes of whole
    models, which evaluations and stages across blocks are made of."""

    starting: float
    blocks: float
    reading: float

    @property
    def total(self) -> float:
        return self.starting + self.blocks + self.reading


def _scale(device: str, threads: int | None) -> float:
    return threads / _MEASURED_THREADS if threads and device == "cpu" else 1.0


def reading_seconds(shape: ModelShape, spec: JobSpec, device: str, threads: int | None, tokens: int) -> float:
    """To run so many tokens through all blocks and the head."""
    work = 2 * (shape.active_parameters + shape.vocab_size * shape.hidden_size) * tokens
    return work / (_THROUGHPUT[device].flops[spec.dtype] * _scale(device, threads))


def seconds_of(shape: ModelShape, spec: JobSpec, device: str, threads: int | None, pausing: bool) -> Seconds:
    """Seconds on a worker that does nothing else, the download left out."""
    speed = _THROUGHPUT[device]
    scale = _scale(device, threads)
    flops = speed.flops[spec.dtype] * scale
    tokens = calibration_tokens(spec) if _streams(spec) else 0
    surveys = _survey_flops(shape, spec)
    training = sum(_training_flops(*given) for given in trainings(shape, spec))
    base, shape = shape, shape_left(shape, spec.recipe)
    forward = 2 * shape.active_parameters * tokens
    # Without pausing, the block runs once more for each group of linears that share an input.
    forward *= 1 if pausing else 1 + sum(not linear.shares_input for linear in shape.linears)
    # XᵀX a little more than above the diagonal, for each distinct input, in float32 whatever the forward's dtype.
    squares = sum(linear.share * linear.in_features**2 for linear in _distinct_inputs(shape))
    solves = _needs_hessian(spec)
    hessian = 1.2 * squares * shape.num_blocks * tokens if solves else 0
    # AWQ asks the Hessian how much an error matters, and rounds at once.
    by_columns = any(stage.method in _HESSIAN_METHODS and not isinstance(stage, Awq) for stage in spec.recipe)
    solving = shape.linear_parameters / (speed.solved_weights if by_columns else speed.quantized_weights) / scale
    for stage in spec.recipe:
        if isinstance(stage, Mixed):
            # Second moments once more, and a rounding of some rows for each choice.
            hessian *= 2
            rounded = sum(min(linear.out_features, _TRIED_ROWS) * linear.in_features for linear in shape.linears)
            solving += len(stage.choices) * rounded * shape.num_blocks / speed.quantized_weights / scale
    if _searches_damping(spec):
        # A third of it is factorizing and the sweep over columns, once for each damping; scales are found once.
        solving *= 1 + (_DAMPINGS - 1) / 3
    # AWQ's candidates: each rounds some rows to a plain grid and multiplies them with the Hessian.
    steps = next((stage.scale_steps for stage in spec.recipe if isinstance(stage, Awq)), 0)
    judged = [(_judged_rows(linear) * linear.in_features, linear.in_features) for linear in shape.linears]
    hessian += steps * shape.num_blocks * sum(2 * weights * in_features for weights, in_features in judged)
    tried = steps * shape.num_blocks * sum(weights for weights, _ in judged)
    # SmoothQuant's: each rounds all weights and multiplies them with a sample of the tokens.
    alphas = next((len(stage.alphas) for stage in spec.recipe if isinstance(stage, SmoothQuant)), 1)
    if alphas > 1:
        hessian += alphas * 2 * shape.linear_parameters * min(_SAMPLED_TOKENS, tokens)
        tried += alphas * shape.linear_parameters
    solving += tried / _PLAIN_ROUNDINGS / speed.quantized_weights / scale
    for stage in spec.recipe:
        if isinstance(stage, Esparse) and stage.shuffle:
            # Each two channels of each two groups, of the widest input of a block.
            pairs = parse_pattern(stage.pattern)[1] ** 2 * max(linear.in_features for linear in shape.linears)
            exchanges = _EXCHANGING_ROUNDS * _EXCHANGING_ROWS * pairs
            solving += shape.num_blocks * exchanges / speed.exchanged_weights / scale
    if any(isinstance(stage, Squeezellm) for stage in spec.recipe):
        solving += shape.linear_parameters / speed.clustered_weights / scale
    if any(isinstance(stage, Svd) for stage in spec.recipe):
        # In float64, at half of float32's rate.
        solving = shape.num_blocks * sum(map(_factorizing_flops, shape.linears)) * 2 / (speed.flops["float32"] * scale)
    if all(isinstance(stage, Depth | Width | Training) for stage in spec.recipe):
        solving = 0
    # Base and artifact by the block stream, the base's head once more to compare the two, and the artifact once more by
    # the runtime that proves it. To compare the tokens' distributions takes about as long as a quarter of a head.
    head = 4.25 * shape.vocab_size * shape.hidden_size
    measured = 2 * (base.active_parameters + 2 * shape.active_parameters + head) * evaluation_tokens(spec)
    # The runtime's texts after fixed prompts, the base's too where it is timed.
    written = 2 * (shape.active_parameters + spec.evaluation.speed * base.active_parameters) * _WRITING_TOKENS
    domains = len(spec.evaluation.domains)
    measured += 2 * (base.active_parameters + shape.active_parameters + head) * evaluation_tokens(spec) * domains
    # One token after the other, a model is read as a whole for each.
    asked = _task_tokens(spec) + _WRITING * _task_tokens(spec, written=True)
    asked += _WRITING * _REFUSAL_TOKENS * spec.evaluation.refusal
    measured += 2 * (base.active_parameters + shape.active_parameters) * asked
    return Seconds(
        starting=speed.start_seconds,
        blocks=forward / flops + hessian / (speed.flops["float32"] * scale) + solving,
        reading=(surveys + measured + written + training) / flops,
    )
