"""The one-pass block stream: gather a layer's statistics, compress it, run on through the compressed weights.

Each micro-batch's forward through a block is paused at the first linear of every group. When all have arrived, the
group's statistics are complete; its linears are compressed, and all forwards run on. So each linear runs once, later
linears see the error of earlier ones, and nothing here knows a block's inside. A pause is a context switch, not a
thread: torch's modes belong to the thread, and one inference_mode surrounds the whole pass.
Shapes: N sequences, T tokens of each, B sequences of a micro-batch, H hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import Quantizer, Stage, Training
from paredown.contracts.report import LayerReport, StageReport
from paredown.engine.activations import ActivationGrid
from paredown.engine.architectures import Skeleton
from paredown.engine.beside import BaseForward
from paredown.engine.block import BlockRun
from paredown.engine.checkpoint import BlockShard, Checkpoint, identity_hash
from paredown.engine.dense import DenseStatistics
from paredown.engine.errors import Drained
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.forward import BlockForward
from paredown.engine.memory import trim_heap
from paredown.engine.method import ModelWork
from paredown.engine.methods import ACROSS_BLOCKS, ASSIGNING_METHODS, METHODS, MODEL_METHODS
from paredown.engine.statistics import Statistic
from paredown.engine.stored import StoredLinear
from paredown.engine.weights import ModelReader, stored

__all__ = ["CompressedModel", "compress_model", "perplexity"]


# The first has a bit more for the digits, the second for the exponent: numbers below 2⁻⁶ lose less in it.
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
# Rows of an embedding, evenly spread, that say which of the two it takes.
_JUDGED_TOKENS = 4096


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # float8_e4m3fn has no infinity: a number beyond its largest would become none at all.
    largest = torch.finfo(dtype).max
    return tensor.float().clamp_(-largest, largest).to(dtype)


def _lost(tensor: Tensor, dtype: torch.dtype) -> float:
    return float((_rounded(tensor, dtype).float() - tensor).square().sum())


class OuterTensors:
    """Parameters outside the blocks, in the number types of the artifact."""

    def __init__(self, files: ModelReader, skeleton: Skeleton, recipe: Sequence[Stage]) -> None:
        wanted = any(isinstance(stage, Quantizer) and stage.embeddings == 8 for stage in recipe)
        # GGUF has a type of its own for them.
        eight_bit = wanted and not files.source.storage.coded
        self._files = files
        self._eight_bit = frozenset(skeleton.embedding_names() if eight_bit else ())
        self._number_types: dict[str, torch.dtype] = {}

    def __call__(self, name: str) -> Tensor:
        if name not in self._eight_bit:
            return stored(self._files, name)
        tensor = self._files.tensor(name)
        if name not in self._number_types:
            rows = tensor[:: max(1, len(tensor) // _JUDGED_TOKENS)].float()
            self._number_types[name] = min(_EIGHT_BITS, key=lambda dtype: _lost(rows, dtype))
        return _rounded(tensor, self._number_types[name])

    def uncoded(self, name: str) -> Tensor:
        """One parameter as it was before a format coded it."""
        return self._files.tensor(name)

    def read_back(self, name: str) -> Tensor:
        """One parameter as readers of the artifact have it."""
        tensor = self(name)
        return tensor.to(self._files.storage_dtype) if name in self._eight_bit else tensor


class CompressedModel:
    """The result of a pass: reads like its model, and gives codes and scales where a linear was quantized."""

    def __init__(
        self,
        files: ModelReader,
        outer: OuterTensors,
        skeleton: Skeleton,
        checkpoint: Checkpoint,
        stages: tuple[StageReport, ...],
    ) -> None:
        self.config = files.config
        self.names = files.names
        self.storage_dtype = files.storage_dtype
        self.linear_names = tuple(skeleton.all_linear_names())
        self.shapes = skeleton.parameter_shapes()
        self.layers: tuple[LayerReport, ...] = tuple(
            layer for index in range(skeleton.num_blocks) for layer in checkpoint.layers(index)
        )
        self.stages = stages
        # A parameter's name in the files of an artifact, which are those of checkpoints.
        self.stored_name = skeleton.stored_name
        self.source = files.source
        self._outer = outer
        self.architecture = skeleton.architecture
        self._shards: dict[str, BlockShard] = {}
        for index in range(skeleton.num_blocks):
            shard = checkpoint.block(index)
            self._shards |= dict.fromkeys(skeleton.block_names(index), shard)

    def quantized(self, linear_name: str) -> StoredLinear | None:
        """Codes and scales of a linear (named without `.weight`); None where it is dense."""
        shard = self._shards.get(f"{linear_name}.weight")
        return shard.quantized(linear_name) if shard and linear_name in shard.quantized_names else None

    def activations(self, linear_name: str) -> ActivationGrid | None:
        """How the inputs of a linear (named without `.weight`) are rounded, where they are."""
        shard = self._shards.get(f"{linear_name}.weight")
        return shard.activations(linear_name) if shard and linear_name in shard.quantized_names else None

    def tensor(self, name: str) -> Tensor:
        """One parameter as the artifact gives it back: in the storage dtype; codes, as they are read back."""
        shard = self._shards.get(name)
        if shard is None:
            return self._outer.read_back(name)
        linear = name.removesuffix(".weight")
        if linear in shard.quantized_names:
            return self.architecture.oriented(shard.quantized(linear).dequantized()).contiguous()
        return shard.dense(name)

    def uncoded(self, name: str) -> Tensor:
        """One parameter outside the blocks before the format coded it."""
        return self._outer.uncoded(name)

    def stored(self, name: str) -> Tensor:
        """One parameter in the number type of the file, where it is not stored as codes."""
        return self.tensor(name) if name in self._shards else self._outer(name)


def compress_model(
    files: ModelReader,
    recipe: Sequence[Stage],
    tokens_NT: Tensor | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    pausing: bool = True,
    calibration: Calibration | None = None,
    keep_zeros: bool = False,
    training: Mapping[int, Tensor] | None = None,
    work_dir: Path,
    identity: str,
    statistics_dir: Path | None = None,
    statistics_identity: str | None = None,
    on_progress: Callable[[int, int], None],
    should_drain: Callable[[], bool],
) -> CompressedModel:
    """Run a recipe over a model, block by block; `tokens_NT` may be None where no stage looks at activations.
    `training` has the tokens of each stage that trains, by its place in the recipe.

    Stages that look across blocks come first; the linear ones then stream over the model that those hand on.
    `calibration` says what becomes of a mixture's experts that hardly any token reaches. With `keep_zeros` the model
    was pruned before: what is zero stays zero.

    Where calibration asks for dense statistics, they are kept in `statistics_dir`; runs with an equal
    `statistics_identity` (hash of model and tokens and all else that decides them) share them there. Without these two,
    or after stages that look across blocks, they are the run's own.

    Finished blocks are durable in `work_dir`; a run with an equal `identity` (hash of all that decides the bytes) goes
    on after them, and its files equal an uninterrupted run's. `on_progress` is told finished and all blocks. Raises
    EngineError subclasses that name the layer, and Drained at a block boundary once `should_drain` says so.
    """
    training, calibration = training or {}, calibration or Calibration()
    base, origins = files, tuple(range(int(files.config.num_hidden_layers)))
    passes = _Passes(on_progress, _weights(recipe, tokens_NT, training, calibration), len(origins))
    reports: list[StageReport] = []
    # Stages of the pass through linears; where each linear has its own, by its name.
    linear: list[Stage | Mapping[str, Stage]] = []
    for index, stage in enumerate(recipe):
        if stage.method in METHODS:
            linear.append(stage)
            continue
        assert tokens_NT is not None, "a stage needs calibration, but there are no tokens"
        assert (index in training) == isinstance(stage, Training), "stages that train have tokens of their own"
        work = ModelWork(
            stage=index,
            base=base,
            origins=origins,
            tokens_NT=training.get(index, tokens_NT),
            device=device,
            dtype=dtype,
            directory=work_dir / f"stage-{index}",
            identity=identity_hash(identity, index),
            on_progress=passes.step,
            should_drain=should_drain,
        )
        if stage.method in MODEL_METHODS:
            files, report = MODEL_METHODS[stage.method].apply(files, work, stage)
        else:
            assigned, report = ASSIGNING_METHODS[stage.method].assign(files, work, stage)
            linear.append(assigned)
            identity = identity_hash(identity, [(name, own.identity()) for name, own in assigned.items()])
        reports.append(report)
        if report.blocks:
            origins = tuple(origins[block.block] for block in report.blocks if block.kept)
        passes.next()
    skeleton = Skeleton(files.config, dtype)
    outer = OuterTensors(files, skeleton, recipe)
    num_blocks = skeleton.num_blocks
    every = [stage for entry in linear for stage in (entry.values() if isinstance(entry, Mapping) else [entry])]
    needs = frozenset[Statistic]().union(*(METHODS[stage.method].needs for stage in every))
    dense: DenseStatistics | None = None
    gathers = bool(needs) and calibration.statistics == "dense"
    sequential = bool(needs) and not gathers
    checkpoint = Checkpoint(work_dir, identity, num_blocks, sequential=sequential)
    todo = [index for index in range(num_blocks) if index not in checkpoint.finished]
    if gathers and todo:
        assert tokens_NT is not None, "a stage needs calibration, but there are no tokens"
        shared = statistics_dir is not None and statistics_identity is not None and files is base
        with torch.inference_mode():
            dense = DenseStatistics(
                files,
                tokens_NT,
                device=device,
                dtype=dtype,
                needs=needs,
                directory=statistics_dir if shared and statistics_dir else work_dir / "statistics",
                identity=statistics_identity if shared and statistics_identity else identity,
                on_progress=passes.step,
                should_drain=should_drain,
            )
    if gathers:
        passes.next()
    passes.step(len(checkpoint.finished), num_blocks)
    with torch.inference_mode():
        forward: BlockForward | None = None
        beside: BaseForward | None = None
        if sequential and todo:
            assert tokens_NT is not None, "a stage needs calibration, but there are no tokens"
            skeleton.load_outer(outer, device)
            forward = BlockForward(skeleton, tokens_NT, device)
            skeleton.release_outer()
            if calibration.asymmetry:
                beside = BaseForward(files, tokens_NT, device, dtype, pausing=pausing)
            saved = checkpoint.hidden(todo[0], forward.states_device)
            if saved is not None:
                forward.states = saved[: len(forward.tokens)]
                if beside is not None:
                    beside.states = saved[len(forward.tokens) :]
        with _Writer(checkpoint, lambda finished: passes.step(finished, num_blocks)) as writer:
            for index in todo:
                if should_drain():
                    writer.wait()
                    raise Drained
                block = BlockRun(files, skeleton, index, linear, device, calibration, keep_zeros=keep_zeros)
                if forward is None:
                    block.compress_all(dense.of(index) if dense else None)
                elif pausing:
                    block.stream_through(forward, beside)
                else:
                    block.rerun_through(forward, beside)
                hidden: list[Tensor] | None = None
                if forward is not None and index + 1 < num_blocks:
                    hidden = [*forward.states, *(beside.states if beside else ())]
                writer.save(index, block, hidden)
                skeleton.release_block(index)
                # Or the heap falls into ever more pieces, and memory grows with the number of blocks.
                trim_heap()
            writer.wait()
    return CompressedModel(files, outer, skeleton, checkpoint, tuple(reports))


class _Writer:
    """Makes blocks durable in a thread beside the computing of the next, one at a time: a crash loses the block that is
    computed, and at most the one that is written.

    `on_saved` is told, in that thread, how many blocks are durable.
    """

    def __init__(self, checkpoint: Checkpoint, on_saved: Callable[[int], None]) -> None:
        self._checkpoint = checkpoint
        self._on_saved = on_saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        # Whatever ended the work: the block before it is finished.
        self._thread.shutdown()
        if error is not None and self._saving is not None and (failed := self._saving.exception()) not in (None, error):
            error.add_note(f"Nor could the block before be written: {failed}")

    def save(self, index: int, block: BlockRun, hidden: list[Tensor] | None) -> None:
        """`hidden`, which enters the next block, must not change any more. Raises as `wait`, of the block before."""
        self.wait()
        self._saving = self._thread.submit(self._save, index, block, hidden)

    def wait(self) -> None:
        """Until all that was given is durable. Raises DiskFull."""
        if self._saving is not None:
            self._saving.result()

    def _save(self, index: int, block: BlockRun, hidden: list[Tensor] | None) -> None:
        self._checkpoint.save(index, block.dense, block.quantized, tuple(block.layers), hidden)
        self._on_saved(len(self._checkpoint.finished))


def _weights(
    recipe: Sequence[Stage], tokens_NT: Tensor | None, training: Mapping[int, Tensor], calibration: Calibration
) -> list[float]:
    """What each pass over the blocks costs, in passes of the calibration tokens: those of stages that look across
    blocks, that of dense statistics, and the linear stages' one."""
    if tokens_NT is None:
        return [1.0]
    across = [
        ACROSS_BLOCKS[stage.method].passes_over(stage, len(tokens_NT))
        * training.get(index, tokens_NT).numel()
        / tokens_NT.numel()
        for index, stage in enumerate(recipe)
        if stage.method in ACROSS_BLOCKS
    ]
    return [*across, 1.0, 1.0] if calibration.statistics == "dense" else [*across, 1.0]


class _Passes:
    """Progress over all passes of a recipe, in blocks of a pass of weight 1."""

    def __init__(self, on_progress: Callable[[int, int], None], weights: Sequence[float], num_blocks: int) -> None:
        self._on_progress = on_progress
        self._weights = weights
        self._num_blocks = num_blocks
        self._current = 0

    def step(self, done: int, total: int) -> None:
        if len(self._weights) == 1:
            self._on_progress(done, total)
            return
        behind, weight, whole = sum(self._weights[: self._current]), self._weights[self._current], sum(self._weights)
        gone = behind + weight * done / total
        self._on_progress(round(gone * self._num_blocks), round(whole * self._num_blocks))

    def next(self) -> None:
        self._current += 1
