"""What a job would need: memory, disk, time. From sizes alone, each formula beside its reason.

The artifact's bytes are in core/sizes.py. What these formulas leave out, the history of finished jobs makes up for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from paredown.contracts import gguf
from paredown.contracts.families import LinearShape, ModelShape
from paredown.contracts.job import Format, JobSpec
from paredown.contracts.pieces import (
    DAMPING_FACTORS,
    EXCHANGING_ROUNDS,
    EXCHANGING_ROWS,
    GENERATED_TOKENS,
    GRADIENT_HEAD_TOKENS,
    HEAD_TOKENS,
    JUDGED_ROWS,
    MICRO_BATCH_TOKENS,
    PROVING_TOKENS,
    SAMPLED_TOKENS,
    SHARD_BYTES,
    SUBMODELS_AT_ONCE,
    TASK_STATES_BYTES,
    TRIED_ROWS,
)
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
    SmoothQuant,
    Squeezellm,
    Stage,
    Svd,
    Training,
    UniformGrid,
    Width,
    quantizer,
    shape_left,
)
from paredown.contracts.recipes.pruning import parse_pattern
from paredown.contracts.tasks import TASKS
from paredown.core.sizes import output_bytes

# Methods that gather XᵀX of every layer's input, and solve with it.
_HESSIAN_METHODS = ("gptq", "owq", "squeezellm", "sparsegpt", "awq", "smoothquant", "fp8-gptq", "svd", "mixed")

# Tokens that a forward pass would have read while a runtime writes its texts (engine/evaluation/generation.py).
_WRITING_TOKENS = 1000

# A step of training is many small operations, at half of a forward pass's rate.
_TRAINING_SLOWNESS = 2


def is_calibrated(spec: JobSpec) -> bool:
    return any(stage.needs_calibration for stage in spec.recipe)


# A process that has imported torch and transformers and read a tokenizer; measured resident size on Linux.
PROCESS_BYTES = 560 * 2**20
CUDA_CONTEXT_BYTES = 600 * 2**20
# What was freed between pieces still in use, and what libraries hold beside the sums below. With it, 23 of 24 recipes
# on the packaged model peaked within 15 % of their plans (docs/performance.md); they take less since, so it is safe.
_FRAGMENTATION = 1.25
# lm-eval with its data library once imported (107 MiB of resident size on Linux), and its requests.
_HARNESS_BYTES = 150 * 2**20
# How many times longer a token takes that is written than one that is read (135 M parameters on two cores).
_WRITING = 10
# Prompts and answers of engine/evaluation/refusal.py.
_REFUSAL_TOKENS = 40 * 96


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
    # A Hessian in float32; the damped one, factored in its own place in float64, and the factor in float32 beside it. A
    # search for the damping keeps a factor of each that it tries.
    kept = 4 * (len(DAMPING_FACTORS) - 1) if _searches_damping(spec) else 0
    if any(isinstance(stage, Owq) for stage in spec.recipe):
        # The same Hessian in the order of work.
        kept += 4
    # SmoothQuant's Hessian is of the smoothed input, beside the one that was gathered.
    kept += 4 if any(isinstance(stage, SmoothQuant) for stage in spec.recipe) else 0
    statistics = (4 + 8 + 4 + kept) * widest**2 if _needs_hessian(spec) else 4 * widest
    block_statistics = 4 * sum(linear.in_features**2 for linear in _distinct_inputs(shape))
    asymmetric = is_asymmetric(spec)
    if asymmetric:
        # What the base's inputs have beyond these, and the damped Hessian's factor in float64 and float32.
        statistics += (4 + 8 + 4) * widest**2
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
    micro_batch = min(MICRO_BATCH_TOKENS, max(calibrated, evaluated))
    # Logits of so many positions in float32, and three more of that size inside the loss.
    logits = 4 * 4 * shape.vocab_size * HEAD_TOKENS
    # To compare them, the base's head beside the artifact's, and its logits with what their distance takes.
    compared = shape.vocab_size * shape.hidden_size * number + logits
    evaluation = outer + block_parameters * (number + 2) + evaluated * states + micro_batch * inside + logits + compared
    tasks = 0
    if scored := _task_tokens(spec):
        # Hidden states of as many requests as one pass holds, and what lm-eval and its data library take.
        kept = min(TASK_STATES_BYTES, scored * shape.hidden_size * number)
        batch = min(MICRO_BATCH_TOKENS, scored) * inside
        evaluation = max(evaluation, outer + block_parameters * (number + 2) + kept + batch + logits)
        evaluation += _HARNESS_BYTES
        tasks = evaluation
    writing = min(output_bytes(shape, spec.recipe, spec.resolved_format), SHARD_BYTES)
    if any(isinstance(stage, Svd) for stage in spec.recipe):
        # The weight, the weight times its inputs' factor and both factors of the result, in float64.
        block += 4 * 8 * max(linear.weights for linear in shape.linears)
    # The base beside the compressed model: its block, its hidden states, and the activations of its forwards.
    models = 2 if asymmetric else 1
    block += (models - 1) * block_parameters * number
    compression = outer + block + (statistics + models * calibrated * states if calibrated else 0)
    scores = micro_batch * shape.score_heads * length * (number + 4)
    # Of stages that look across blocks.
    across = 0
    for bonsai in (stage for stage in spec.recipe if isinstance(stage, Bonsai)):
        # Sub-models that run at once, each with hidden states of its own, and the loss.
        tried = _submodel_tokens(bonsai, spec) * shape.hidden_size * number
        across = max(across, outer + block + tried + logits)
    if any(isinstance(stage, LlmPruner | Mixed) for stage in spec.recipe):
        # The block and its gradient, both again in float32, a micro-batch's activations with theirs, and the loss.
        head = 2 * 4 * shape.vocab_size * GRADIENT_HEAD_TOKENS
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

    one_batch = peak(min(calibrated, micro_batch) * inside * models)
    # Only linear stages pause forwards; a survey of blocks runs one micro-batch after the other, and so does the pass
    # that gathers dense statistics.
    pausing = _streams(spec) and not _keeps_statistics(spec)
    return Memory(
        pausing=peak(calibrated * inside * models) if pausing else one_batch,
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
    return min(stage.submodels, SUBMODELS_AT_ONCE) * samples * spec.calibration.sequence_length


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
        shape = stage.shape_after(shape)


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
            # It tries a merge at most blocks, and runs half of the model each time; some at two thresholds.
            return 1 + 0.65 * given.num_blocks
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
        shape = stage.shape_after(shape)


def _adapter_parameters(shape: ModelShape, stage: Training) -> int:
    """Those of one adapter for each linear that is not skipped."""
    return sum(
        stage.rank * (linear.out_features + linear.in_features)
        for name, linear in shape.named_linears()
        if not stage.skips(name)
    )


def _is_block_wise(stage: Training) -> bool:
    return isinstance(stage, Distil) and stage.block_wise


def _training_bytes(base: ModelShape, shape: ModelShape, stage: Training, number: int) -> int:
    """Beside the process: weights, adapters, and the activations of one block for a micro-batch."""
    tokens = stage.batch_size * stage.sequence_length
    micro_batch = min(tokens, max(MICRO_BATCH_TOKENS, stage.sequence_length))
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
    logits = (4 if isinstance(stage, Distil) else 2) * 4 * shape.vocab_size * GRADIENT_HEAD_TOKENS
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


def is_asymmetric(spec: JobSpec) -> bool:
    """Whether the base runs beside the model that the linear stages compress."""
    return _streams(spec) and spec.calibration.asymmetry > 0


def _needs_hessian(spec: JobSpec) -> bool:
    return is_asymmetric(spec) or any(stage.method in _HESSIAN_METHODS for stage in spec.recipe)


def _searches_damping(spec: JobSpec) -> bool:
    return any(isinstance(stage, Gptq) and stage.damping_search for stage in spec.recipe)


def _judged_rows(linear: LinearShape) -> int:
    return linear.out_features // max(1, linear.out_features // JUDGED_ROWS)


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
    emulated_weights: float  # weights that a runtime rounds to float8 anew for each forward pass
    start_seconds: float  # process start, reload in a clean process


# cpu: the 135 M model on two cores of an EPYC with AVX-512: 37 s forward, 27 s Hessians, 29 s solve for 32 × 512 tokens
# in float32. Matrix products alone reach 98 GFLOP/s there in float32, and 370 in bfloat16, of which half is kept.
# cuda: derived, not measured: a third of an H200's published rates, because a block of a small model does not fill it.
_THROUGHPUT = {
    "cpu": Throughput(
        flops={"float32": 9.4e10, "bfloat16": 1.9e11},
        quantized_weights=1.2e7,
        solved_weights=4.8e6,
        clustered_weights=2.3e6,
        exchanged_weights=5.7e7,
        emulated_weights=8e8,
        start_seconds=25,
    ),
    "cuda": Throughput(
        flops={"float32": 2e13, "bfloat16": 2.5e14},
        quantized_weights=4e9,
        solved_weights=2e7,
        clustered_weights=5e8,
        exchanged_weights=1e10,
        emulated_weights=1e11,
        start_seconds=40,
    ),
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
    if is_asymmetric(spec):
        # The base's forward, its inputs' product with the model's own, and each weight's with both and with a factor.
        forward *= 2
        hessian += 2 * squares * shape.num_blocks * tokens
        hessian += shape.num_blocks * sum(4 * linear.weights * linear.in_features for linear in shape.linears)
    # AWQ asks the Hessian how much an error matters, and rounds at once.
    by_columns = any(stage.method in _HESSIAN_METHODS and not isinstance(stage, Awq) for stage in spec.recipe)
    solving = shape.linear_parameters / (speed.solved_weights if by_columns else speed.quantized_weights) / scale
    # A scale and a minimum, or codes of both, are searched for longer.
    grid = quantizer(spec.recipe)
    effort = 1.0
    if isinstance(grid, UniformGrid) and spec.resolved_format is Format.GGUF:
        effort = gguf.search_effort(grid)
    solving += (effort - 1) * shape.linear_parameters / speed.quantized_weights / scale
    for stage in spec.recipe:
        if isinstance(stage, Mixed):
            # Second moments once more, and a rounding of some rows for each choice.
            hessian *= 2
            rounded = sum(min(linear.out_features, TRIED_ROWS) * linear.in_features for linear in shape.linears)
            solving += len(stage.choices) * effort * rounded * shape.num_blocks / speed.quantized_weights / scale
    if _searches_damping(spec):
        # A third of it is factorizing and the sweep over columns, once for each damping; scales are found once.
        solving *= 1 + (len(DAMPING_FACTORS) - 1) / 3
    # AWQ's candidates: each rounds some rows to a plain grid and multiplies them with the Hessian.
    steps = next((stage.scale_steps for stage in spec.recipe if isinstance(stage, Awq)), 0)
    judged = [(_judged_rows(linear) * linear.in_features, linear.in_features) for linear in shape.linears]
    hessian += steps * shape.num_blocks * sum(2 * weights * in_features for weights, in_features in judged)
    tried = steps * shape.num_blocks * sum(weights for weights, _ in judged)
    # SmoothQuant's: each rounds all weights and multiplies them with a sample of the tokens.
    alphas = next((len(stage.alphas) for stage in spec.recipe if isinstance(stage, SmoothQuant)), 1)
    if alphas > 1:
        hessian += alphas * 2 * shape.linear_parameters * min(2 * SAMPLED_TOKENS, tokens)
        tried += alphas * shape.linear_parameters
    solving += tried / _PLAIN_ROUNDINGS / speed.quantized_weights / scale
    for stage in spec.recipe:
        if isinstance(stage, Esparse) and stage.shuffle:
            # Each two channels of each two groups, of the widest input of a block.
            pairs = parse_pattern(stage.pattern)[1] ** 2 * max(linear.in_features for linear in shape.linears)
            exchanges = EXCHANGING_ROUNDS * EXCHANGING_ROWS * pairs
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
    emulating = 0.0
    if isinstance(grid, EightBit) and grid.number == "float":
        emulating = shape.linear_parameters * (GENERATED_TOKENS + PROVING_TOKENS) / speed.emulated_weights / scale
    return Seconds(
        starting=speed.start_seconds,
        blocks=forward / flops + hessian / (speed.flops["float32"] * scale) + solving,
        reading=(surveys + measured + written + training) / flops + emulating,
    )
