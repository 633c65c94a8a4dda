"""One run of the engine: a work order in; an artifact on disk and a report of what was measured out.

Compress → write → evaluate → prove in each claimed runtime → measure speed. Drained between blocks, it goes on where it
stopped when it is called again with the same work directory.
"""

import importlib.metadata
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from paredown.contracts.artifact import Evaluation, Report, RuntimeProof, Speed
from paredown.contracts.families import ModelShape, UnsupportedArchitecture, shape_from_config
from paredown.contracts.job import Calibration, Contract, Format, Phase, Progress
from paredown.contracts.recipes import quantizer
from paredown.contracts.work import EngineResult, WorkOrder
from paredown.engine import data
from paredown.engine.checkpoint import identity_hash
from paredown.engine.errors import (
    ArchitectureUnsupported,
    DeviceUnavailable,
    FormatRefused,
    NanFound,
    NotAModel,
    OrderInvalid,
)
from paredown.engine.evaluation import speed
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import WRITERS, compressed_tensors
from paredown.engine.formats.files import write_companions, write_json
from paredown.engine.memory import peak_memory_bytes
from paredown.engine.progress import Journey, Part
from paredown.engine.runtimes import (
    RuntimeFailed,
    TransformersProcess,
    load_artifact,
    memory_shortage,
    prove,
    unclaimed,
)
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import ModelFiles, open_model

_TOOLS = ("paredown", "torch", "transformers", "compressed-tensors", "safetensors", "tokenizers", "numpy", "gguf")
_BASE_EVALUATION = "base-evaluation.json"


def tools() -> dict[str, str]:
    """Versions of what makes an artifact; a run is resumed only under the same ones."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # gguf is needed for that container only; paredown may run from a source tree.
            continue
    return versions


def device_of(order: WorkOrder) -> torch.device:
    """Raises DeviceUnavailable."""
    if order.device == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("The pool says that its workers have a GPU, but torch sees none here.", field="pool")
    return torch.device("cuda" if order.device != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Inputs:
    """What is read before the work begins."""

    files: ModelFiles
    shape: ModelShape
    tokenizer: Any
    calibration: data.TokenBlocks | None
    evaluation: data.TokenBlocks | None
    warnings: tuple[str, ...]


def run(
    order: WorkOrder, report_progress: Callable[[Progress], None], should_drain: Callable[[], bool]
) -> EngineResult:
    """Carry out a work order. Raises EngineError subclasses, and Drained once `should_drain` says so."""
    device = device_of(order)
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    output_format = _resolved_format(order)
    if order.output_dir.is_dir() and any(order.output_dir.iterdir()):
        raise OrderInvalid(f"The output directory {order.output_dir.name} is not empty; name another one.")
    order.output_dir.mkdir(parents=True, exist_ok=True)

    inputs = _read_inputs(order, output_format)
    journey = Journey(_parts(order, inputs), report_progress, should_drain)
    identity = _identity(order, inputs, device)
    compressed = _compress(order, inputs, device, identity, journey)
    with journey.part("write"):
        size_bytes = WRITERS[output_format](compressed, order.output_dir)
        write_companions(order.model_dir, order.gguf_file, inputs.files.config, inputs.tokenizer, order.output_dir)

    base, artifact = _evaluate(order, inputs, compressed, device, identity, journey)
    # Before any runtime takes memory of its own: this is what compressing and evaluating took.
    peak = peak_memory_bytes(device)
    runtimes: tuple[RuntimeProof, ...] = ()
    speeds: dict[speed.Role, Speed] = {}
    warnings: tuple[str, ...] = ()
    if "transformers" in order.runtimes:
        proof, speeds, warnings = _prove(order, inputs, device, artifact, journey)
        stage = quantizer(order.recipe)
        runtimes = (proof, *unclaimed(output_format, stage.bits if stage else None))

    layers = compressed.layers
    weights = sum(layer.weights for layer in layers)
    return EngineResult(
        report=Report(
            base=base,
            artifact=artifact,
            size_bytes=size_bytes,
            base_bytes=inputs.shape.base_bytes,
            sparsity=sum(layer.zeros for layer in layers) / weights,
            average_bits=sum(layer.bits * layer.weights for layer in layers) / weights,
            speeds=speeds,
            runtimes=runtimes,
            layers=layers,
            phase_seconds=journey.seconds,
            peak_memory_bytes=peak,
            warnings=(*inputs.warnings, *warnings),
        ),
        calibration_tokens_sha256=inputs.calibration.sha256 if inputs.calibration else None,
        evaluation_tokens_sha256=inputs.evaluation.sha256 if inputs.evaluation else None,
    )


def _resolved_format(order: WorkOrder) -> Format:
    if order.format is Format.AUTO:
        return Format.COMPRESSED_TENSORS if quantizer(order.recipe) else Format.SAFETENSORS
    if order.format is Format.COMPRESSED_TENSORS and quantizer(order.recipe) is None:
        raise FormatRefused(
            "Format compressed-tensors needs a stage that quantizes; use safetensors for pruned models.", field="format"
        )
    return order.format


def _calibration_of(order: WorkOrder) -> tuple[Calibration, Path] | None:
    """Settings and text, where a stage needs them. Raises OrderInvalid."""
    if not any(stage.needs_calibration for stage in order.recipe):
        return None
    if order.calibration is None or order.calibration_text is None:
        raise OrderInvalid("A stage of the recipe needs calibration text, and the order names none.")
    return order.calibration, order.calibration_text


def _read_inputs(order: WorkOrder, output_format: Format) -> _Inputs:
    files = open_model(order.model_dir, order.gguf_file)
    try:
        shape = shape_from_config(files.config.to_dict())
    except UnsupportedArchitecture as error:
        raise ArchitectureUnsupported(f"{error}.", field="model") from error
    if output_format is Format.COMPRESSED_TENSORS:
        compressed_tensors.check(files.config)
    calibrated = _calibration_of(order)
    if order.evaluation is not None and order.evaluation_text is None:
        raise OrderInvalid("The order asks for an evaluation and names no text for it.")

    warnings: list[str] = []
    tokenizer = None
    try:
        tokenizer = data.load_tokenizer(order.model_dir, order.gguf_file)
    except NotAModel as error:
        if calibrated or order.evaluation:
            raise
        warnings.append(f"{error.detail} The artifact has none either.")
    calibration = evaluation = None
    if calibrated:
        settings, text = calibrated
        calibration = data.calibration_blocks(text, settings, tokenizer, shape.vocab_size, shape.context_length)
        warnings += calibration.warnings
    if order.evaluation and order.evaluation_text:
        evaluation = data.evaluation_blocks(
            order.evaluation_text, order.evaluation, tokenizer, shape.vocab_size, shape.context_length
        )
    return _Inputs(files, shape, tokenizer, calibration, evaluation, tuple(warnings))


def _parts(order: WorkOrder, inputs: _Inputs) -> dict[str, Part]:
    """The run's parts, their cost in tokens that a forward pass would have read meanwhile (measured on two cores)."""
    parts = {"compress": Part(Phase.COMPRESS, 1500.0, "compressing"), "write": Part(Phase.COMPRESS, 500.0, "writing")}
    if inputs.calibration is not None:
        solved = any(stage.method == "gptq" for stage in order.recipe)
        cost = inputs.calibration.tokens_NT.numel() * (2.5 if solved else 1.3)
        parts["compress"] = Part(Phase.COMPRESS, cost, "compressing")
    evaluated = 0 if inputs.evaluation is None else inputs.evaluation.tokens_NT.numel()
    if evaluated:
        parts["evaluate_base"] = Part(Phase.EVALUATE, 1 if order.baseline else evaluated, "measuring the base")
        parts["evaluate_artifact"] = Part(Phase.EVALUATE, evaluated, "measuring the artifact")
    if "transformers" in order.runtimes:
        if order.evaluation and order.evaluation.speed:
            parts["speed"] = Part(Phase.EVALUATE, 4000.0, "measuring speed")
        parts["prove"] = Part(Phase.EVALUATE, 2000.0 + evaluated, "loading the artifact in transformers")
    return parts


def _identity(order: WorkOrder, inputs: _Inputs, device: torch.device) -> str:
    """All that decides the bytes of a finished block."""
    return identity_hash(
        [stage.identity() for stage in order.recipe],
        [stage.version for stage in order.recipe],
        inputs.calibration.sha256 if inputs.calibration else None,
        _fingerprint(order.model_dir),
        order.dtype,
        device.type,
        torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        tools(),
    )


def _fingerprint(model_dir: Path) -> list[tuple[str, int, str]]:
    """Names, sizes, and the ends of every file: enough to tell that a work directory belongs to another model.

    That the files are what their source says was verified when they were fetched, by their whole hashes.
    """
    found: list[tuple[str, int, str]] = []
    for path in sorted(path for path in model_dir.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            size = path.stat().st_size
            start = stream.read(1 << 20)
            stream.seek(max(0, size - (1 << 20)))
            found.append((path.name, size, identity_hash(start.hex(), stream.read().hex())))
    return found


def _compress(
    order: WorkOrder, inputs: _Inputs, device: torch.device, identity: str, journey: Journey
) -> CompressedModel:
    first = True

    def on_progress(done: int, total: int) -> None:
        nonlocal first
        if first:
            journey.resumed(done, total)
        first = False
        journey.step(done, total)

    with journey.part("compress"):
        return compress_model(
            inputs.files,
            order.recipe,
            inputs.calibration.tokens_NT if inputs.calibration else None,
            device=device,
            dtype=getattr(torch, order.dtype),
            pausing=order.pausing,
            work_dir=order.work_dir,
            identity=identity,
            on_progress=on_progress,
            should_drain=journey.asked_to_stop,
        )


class _SavedEvaluation(Contract):
    """The base's figures, kept beside the checkpoint so that a resumed run need not measure it again."""

    identity: str
    evaluation: Evaluation


def _evaluate(
    order: WorkOrder,
    inputs: _Inputs,
    compressed: CompressedModel,
    device: torch.device,
    identity: str,
    journey: Journey,
) -> tuple[Evaluation | None, Evaluation | None]:
    """Base and artifact, in that order, under one protocol; the base only where its figures are not known yet."""
    if inputs.evaluation is None or order.evaluation is None:
        return None, None
    blocks = inputs.evaluation
    protocol = data.protocol(order.evaluation, blocks, order.dtype)
    protocol_hash = data.protocol_hash(protocol)

    def measure(model: ModelFiles | CompressedModel) -> Evaluation:
        started = time.monotonic()
        value, predicted = perplexity(
            model,
            blocks.tokens_NT,
            device=device,
            dtype=getattr(torch, order.dtype),
            on_progress=journey.step_or_stop,
        )
        if not math.isfinite(value):
            raise NanFound(f"The perplexity is {value}: the model gives no usable probabilities.")
        return Evaluation(
            protocol=protocol,
            protocol_hash=protocol_hash,
            perplexity=value,
            predicted_tokens=predicted,
            device=device.type,
            seconds=round(time.monotonic() - started, 3),
        )

    saved = order.work_dir / _BASE_EVALUATION
    with journey.part("evaluate_base"):
        known = order.baseline or _saved_evaluation(saved, identity)
        if known is not None and known.protocol_hash == protocol_hash:
            base = known.model_copy(update={"cached": order.baseline is not None})
        else:
            base = measure(inputs.files)
            write_json(saved, _SavedEvaluation(identity=identity, evaluation=base).model_dump(mode="json"))
    with journey.part("evaluate_artifact"):
        artifact = measure(compressed)
    return base, artifact


def _saved_evaluation(path: Path, identity: str) -> Evaluation | None:
    try:
        saved = _SavedEvaluation.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        # Absent, or cut off while it was written: measuring again is all it costs.
        return None
    return saved.evaluation if saved.identity == identity else None


def _prove(
    order: WorkOrder, inputs: _Inputs, device: torch.device, artifact: Evaluation | None, journey: Journey
) -> tuple[RuntimeProof, dict[speed.Role, Speed], tuple[str, ...]]:
    """Load the artifact in transformers, beside the base where speed is asked for."""
    shape = inputs.shape
    # In the protocol's number type the artifact may take four bytes a parameter.
    shortage = memory_shortage(shape.parameters, 4, device.type)
    if shortage:
        proof = RuntimeProof(runtime="transformers", version=tools()["transformers"], loads=False, detail=shortage)
        return proof, {}, (f"The artifact was not loaded in transformers: it {shortage}.",)
    settings = speed.SpeedSettings().within(shape.context_length)
    prompt = _prompt(inputs, settings.prompt_tokens)
    speeds: dict[speed.Role, Speed] = {}
    warnings: tuple[str, ...] = ()
    with (
        tempfile.TemporaryDirectory(prefix="runtime-") as scratch,
        TransformersProcess(Path(scratch), device.type, torch.get_num_threads()) as process,
    ):
        if order.evaluation and order.evaluation.speed:
            with journey.part("speed"):
                load_artifact(process, order.output_dir)
                speeds, warnings = _measure_speed(order, inputs, process, prompt, settings)
        with journey.part("prove"):
            if not process.loaded:
                load_artifact(process, order.output_dir)
            tokens = None
            if inputs.evaluation is not None:
                tokens = Path(scratch) / "evaluation-tokens.npy"
                numpy.save(tokens, inputs.evaluation.tokens_NT.numpy())
            proof = prove(
                process,
                prompt=prompt[: max(1, min(16, shape.context_length // 4))],
                new_tokens=max(1, min(24, shape.context_length // 2)),
                tokens=tokens,
                dtype=order.dtype,
                reported=artifact.perplexity if artifact else None,
            )
    return proof, speeds, warnings


def _measure_speed(
    order: WorkOrder,
    inputs: _Inputs,
    artifact: TransformersProcess,
    prompt: list[int],
    settings: speed.SpeedSettings,
) -> tuple[dict[speed.Role, Speed], tuple[str, ...]]:
    shortage = memory_shortage(inputs.shape.parameters, 4, artifact.device)
    if shortage:
        return {}, (f"Speed was not measured: the base beside the artifact {shortage}.",)
    with TransformersProcess(artifact.scratch, artifact.device, artifact.threads) as base:
        try:
            base.load(order.model_dir, gguf_file=order.gguf_file, dtype=inputs.files.storage_dtype)
            return speed.measure({"base": base, "artifact": artifact}, prompt, settings), ()
        except RuntimeFailed as error:
            return {}, (f"Speed was not measured: {error}.",)


def _prompt(inputs: _Inputs, length: int) -> list[int]:
    """The first tokens of the evaluation text, else of the calibration text, else the vocabulary's."""
    blocks = inputs.evaluation or inputs.calibration
    known = blocks.tokens_NT.flatten()[:length].tolist() if blocks else []
    return [*known, *(index % inputs.shape.vocab_size for index in range(length - len(known)))]


__all__ = ["device_of", "run", "tools"]
