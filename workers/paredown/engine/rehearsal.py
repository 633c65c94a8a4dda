"""The canary of a job: its largest block alone, through the very code that the whole model will go through.

A model of that one block (a view, as depth pruning makes them) is compressed by the job's linear stages, written in the
job's format and evaluated, in directories of its own, and what it took is told. It enters no artifact.

The block reads the embeddings of the job's own calibration tokens, all of them. For the first block, which is the
largest where all are alike, these are the very inputs of the run; for another one they have the shape, number type,
masks and order of size of its inputs, and neither time nor memory looks at values. Random states would need a scale
made up for each family. What only values decide is not rehearsed: experts that too few tokens reach never end it.
Stages across blocks are left out. The block is as narrow as they leave it, by its first channels and heads, and what a
stage skips of it is what it skips of the block that the linear stages have most to do with.
"""

import time
from collections.abc import Callable, Sequence

import torch

from paredown.contracts.job import Calibration
from paredown.contracts.pieces import MICRO_BATCH_TOKENS
from paredown.contracts.recipes import Mixed, Stage, shape_left
from paredown.contracts.shapes import ModelShape
from paredown.contracts.work import Rehearsal, WorkOrder
from paredown.engine.architectures import Skeleton
from paredown.engine.depth import Blend, DepthView
from paredown.engine.evaluation.divergence import Comparison, StatesFile
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import WRITERS
from paredown.engine.forward import states_device
from paredown.engine.inputs import Inputs, read_inputs, resolved_format
from paredown.engine.memory import give_back, peak_memory_bytes, peak_resident_bytes
from paredown.engine.methods import METHODS
from paredown.engine.run import device_of
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import ModelReader
from paredown.engine.width import WidthView

# Tokens of a sequence that is run only for what every pass takes, however little it reads.
_SHORT_TOKENS = 16


def rehearse(order: WorkOrder, should_drain: Callable[[], bool]) -> Rehearsal:
    """Carry out an order on the model's largest block alone. Raises EngineError subclasses, and Drained."""
    device = device_of(order)
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    output_format = resolved_format(order)
    order.output_dir.mkdir(parents=True, exist_ok=True)
    inputs = read_inputs(order, output_format)
    # Tokenizing took more memory than the tokens do.
    give_back(device)
    block = largest_block(inputs.files)
    base = DepthView(inputs.files, [Blend.of(block)])
    left = shape_left(inputs.shape, order.recipe)
    stopwatch = _Stopwatch(should_drain)
    compressed = _compress(order, inputs, _narrowed(base, left), _stages(order.recipe, left), device, stopwatch)
    started = time.monotonic()
    saved_bytes = WRITERS[output_format](compressed, order.output_dir)
    saved_seconds = time.monotonic() - started
    read_tokens, read_seconds = _evaluate(order, inputs, base, compressed, device)
    cuda = device.type == "cuda"
    return Rehearsal(
        block=block,
        block_seconds=stopwatch.seconds,
        checkpoint_bytes=sum(path.stat().st_size for path in order.work_dir.glob("block-*")),
        saved_bytes=saved_bytes,
        saved_seconds=saved_seconds,
        read_tokens=read_tokens,
        read_seconds=read_seconds,
        memory_bytes=peak_resident_bytes(),
        device_memory_bytes=peak_memory_bytes(device) if cuda else None,
        device_total_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else None,
    )


def largest_block(files: ModelReader) -> int:
    """By the bytes of its parameters; the first, where several are."""
    skeleton = Skeleton(files.config, torch.float32)
    shapes = skeleton.parameter_shapes()
    return max(
        range(skeleton.num_blocks),
        key=lambda index: sum(torch.Size(shapes[name]).numel() for name in skeleton.block_names(index)),
    )


class _Stopwatch:
    """Times what `compress_model` does for each block: from the first boundary, where it asks whether to drain, to the
    last progress. The embeddings lie before that, and are run once for all blocks."""

    def __init__(self, should_drain: Callable[[], bool]) -> None:
        self._should_drain = should_drain
        self._started: float | None = None
        self.seconds = 0.0

    def should_drain(self) -> bool:
        if self._started is None:
            self._started = time.monotonic()
        return self._should_drain()

    def on_progress(self, _done: int, _total: int) -> None:
        if self._started is not None:
            self.seconds = time.monotonic() - self._started


def _compress(
    order: WorkOrder,
    inputs: Inputs,
    model: ModelReader,
    stages: Sequence[Stage],
    device: torch.device,
    stopwatch: _Stopwatch,
) -> CompressedModel:
    calibration = order.calibration or Calibration()
    return compress_model(
        model,
        stages,
        inputs.calibration.tokens_NT if inputs.calibration else None,
        device=device,
        dtype=getattr(torch, order.dtype),
        pausing=order.pausing,
        calibration=calibration.model_copy(update={"unreached_experts": "uniform"}),
        keep_zeros=order.origin is not None and order.origin.pruned,
        work_dir=order.work_dir,
        identity="rehearsal",
        on_progress=stopwatch.on_progress,
        should_drain=stopwatch.should_drain,
    )


def _narrowed(model: ModelReader, left: ModelShape) -> ModelReader:
    """As narrow as the recipe's stages leave a model: how long work takes does not depend on which channels go."""
    if not left.kv_heads or (left.mlp_channels, left.kv_heads) == (
        model.config.intermediate_size,
        model.config.num_key_value_heads,
    ):
        return model
    return WidthView(model, [torch.arange(left.mlp_channels)], [torch.arange(left.kv_heads)])


def _stages(recipe: Sequence[Stage], left: ModelShape) -> list[Stage]:
    """Those that act on linears, for a model of one block, of `left`'s that they skip least of.

    Where bits are chosen layer by layer, every layer gets the fewest.
    """
    chosen = (stage.at(stage.choices[0]) if isinstance(stage, Mixed) else stage for stage in recipe)
    stages = [stage for stage in chosen if stage.method in METHODS]
    weights = [linear.weights for linear in left.linears]

    def work(names: Sequence[str]) -> int:
        return sum(size for stage in stages for name, size in zip(names, weights, strict=True) if not stage.skips(name))

    blocks = left.block_linears()
    busiest = max(blocks, key=work)
    return [
        stage.model_copy(
            update={"skip": tuple(first for first, name in zip(blocks[0], busiest, strict=True) if stage.skips(name))}
        )
        for stage in stages
    ]


def _evaluate(
    order: WorkOrder, inputs: Inputs, base: ModelReader, compressed: CompressedModel, device: torch.device
) -> tuple[int, float]:
    """Evaluate base and result on one micro-batch, and compare them. Returns (tokens, seconds) of the base's pass."""
    tokens = inputs.evaluation or inputs.calibration
    dtype = getattr(torch, order.dtype)
    if tokens is None:
        return 0, 0.0
    every_NT = tokens.tokens_NT
    some_NT = every_NT[: max(1, MICRO_BATCH_TOKENS // every_NT.shape[1])]
    hidden_bytes = (every_NT.numel() - some_NT.numel()) * int(base.config.hidden_size) * dtype.itemsize
    states = order.work_dir / "states.npy"
    # The other sequences' hidden states, which lie in memory meanwhile; written to, or the system would not provide it.
    others = [torch.ones(hidden_bytes, dtype=torch.uint8, device=states_device(device, hidden_bytes))]
    fixed = _timed(lambda: perplexity(base, some_NT[:1, :_SHORT_TOKENS], device=device, dtype=dtype))
    with StatesFile(states, some_NT[:, 1:].numel()) as written:
        seconds = _timed(lambda: perplexity(base, some_NT, device=device, dtype=dtype, observe=written))
        written.finish()
    with Comparison(base, states, device=device, dtype=dtype) as comparison:
        perplexity(compressed, some_NT, device=device, dtype=dtype, observe=comparison)
    others.clear()
    return some_NT.numel(), max(seconds - fixed, 0.0)


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
