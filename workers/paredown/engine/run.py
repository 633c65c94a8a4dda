"""One run of the engine: a work order in; an artifact on disk and a report of what was measured out.

Compress → write → evaluate → measure speed → prove in each claimed runtime. Drained between blocks, it goes on where it
stopped when it is called again with the same work directory.
"""

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from paredown.contracts import gguf
from paredown.contracts.job import Calibration, Contract, EvaluationSettings, Format, Phase, Progress
from paredown.contracts.recipes import Gptq, Mixed, Squeezellm, Stage, Training, UniformGrid, quantizer, shape_left
from paredown.contracts.report import Divergence, Evaluation, LayerReport, Protocol, Report, RuntimeProof, Speed
from paredown.contracts.trust import flags
from paredown.contracts.work import CALIBRATION_FILE, DrawnCalibration, EngineResult, WorkOrder
from paredown.engine import data
from paredown.engine.calibration import save_blocks, tokenizer_sha256
from paredown.engine.checkpoint import identity_hash
from paredown.engine.errors import BaselineUnknown, DeviceUnavailable, NanFound, OrderInvalid
from paredown.engine.evaluation.divergence import Comparison, StatesFile, has_states
from paredown.engine.evaluation.domains import domain_parts, measure_domains
from paredown.engine.evaluation.perplexity import Observer, perplexity
from paredown.engine.evaluation.refusal import check_refusal, measure_refusal, refusal_parts
from paredown.engine.evaluation.speed import Role, not_faster
from paredown.engine.evaluation.tasks import check_tasks, measure_scored, measure_written, task_parts
from paredown.engine.experts import coverage_warnings
from paredown.engine.formats import WRITERS
from paredown.engine.formats.files import write_companions, write_json
from paredown.engine.inputs import Inputs, fingerprint, read_inputs, resolved_format
from paredown.engine.llama_cpp import prove_in_llama_cpp
from paredown.engine.memory import give_back, peak_memory_bytes
from paredown.engine.methods import ACROSS_BLOCKS, METHODS
from paredown.engine.progress import Journey, Part
from paredown.engine.proof import prove_artifact
from paredown.engine.runtimes import unclaimed
from paredown.engine.statistics import Statistic
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.vllm import check_vllm, prove_in_vllm, tries_vllm
from paredown.engine.weights import ModelFiles
from paredown.engine.wide import multiplies_bfloat16

_TOOLS = (
    "paredown",
    "torch",
    "transformers",
    "compressed-tensors",
    "safetensors",
    "tokenizers",
    "numpy",
    "gguf",
    "highspy",
)
_BASE_EVALUATION = "base-evaluation.json"
_BASE_STATES = "base-states.npy"
# Raised where the engine itself gives other bytes than before: no run is resumed across that.
_REVISION = 5
_PERPLEXITY_UNKNOWN = (
    "The base's perplexity under this evaluation is not known; a job on the base with the same evaluation measures it."
)


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


def run(
    order: WorkOrder, report_progress: Callable[[Progress], None], should_drain: Callable[[], bool]
) -> EngineResult:
    """Carry out a work order. Raises EngineError subclasses, and Drained once `should_drain` says so."""
    device = device_of(order)
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    output_format = resolved_format(order)
    if order.output_dir.is_dir() and any(order.output_dir.iterdir()):
        raise OrderInvalid(f"The output directory {order.output_dir.name} is not empty; name another one.")
    order.output_dir.mkdir(parents=True, exist_ok=True)

    inputs = read_inputs(order, output_format)
    if order.origin and order.origin.baseline_required and _known_base(order, inputs) is None:
        raise BaselineUnknown(
            "The budget limits the rise in perplexity over the base, which was not measured on this very text yet and "
            "is not here to be measured. Submit a job on the base with the same evaluation, then retry this one.",
            field="budget.max_perplexity_increase",
        )
    check_tasks(order, inputs, device)
    check_refusal(order, inputs, device)
    check_vllm(order, output_format)
    # Tokenizing took more memory than the tokens do.
    inputs.release_tokenizer()
    give_back(device)
    journey = Journey(_parts(order, inputs, output_format), report_progress, should_drain)
    identity = _identity(order, inputs, device)
    compressed = _compress(order, inputs, device, identity, journey)
    compress_peak = peak_memory_bytes(device)
    give_back(device)
    with journey.part("write"):
        size_bytes = WRITERS[output_format](compressed, order.output_dir)
        # A GGUF file holds its tokenizer and settings itself.
        if output_format is not Format.GGUF:
            write_companions(order.model_dir, order.gguf_file, inputs.files.config, inputs.tokenizer, order.output_dir)

    base, artifact, divergence = _evaluate(order, inputs, compressed, device, identity, journey)
    domains = measure_domains(order, inputs, compressed, device, journey)
    tasks = measure_scored(order, inputs, compressed, device, identity, journey)
    # Before any runtime takes memory of its own: this is what compressing and evaluating took.
    peak = peak_memory_bytes(device)
    runtimes: tuple[RuntimeProof, ...] = ()
    speeds: dict[Role, Speed] = {}
    warnings: tuple[str, ...] = ()
    if _runtime(output_format) in order.runtimes:
        # What this process no longer uses is the runtimes' to take.
        give_back(device)
        if output_format is Format.GGUF:
            proof, speeds, warnings = prove_in_llama_cpp(order, inputs, artifact, journey)
        else:
            proof, speeds, warnings = prove_artifact(order, inputs, device, artifact, journey)
        asked = order.evaluation.runtimes if order.evaluation else None
        runtimes = (proof, *unclaimed(output_format, order.recipe, shape_left(inputs.shape, order.recipe), asked))
    if tries_vllm(order, output_format):
        give_back(device)
        in_vllm, more = prove_in_vllm(order, inputs, output_format, artifact, journey)
        others = [proof for proof in runtimes if proof.runtime != "vllm"]
        runtimes = (*others[:1], in_vllm, *others[1:])
        warnings += more

    tasks += measure_written(order, inputs, device, journey)
    refusal = measure_refusal(order, inputs, device, journey)
    flagged = flags(tasks, domains, base, artifact, refusal)
    warnings = (*(flag.detail for flag in flagged), *warnings)

    if order.origin and artifact is not None:
        warnings = (
            *(() if base is not None else (_PERPLEXITY_UNKNOWN,)),
            "The divergence from the base was not measured: this job began with an artifact, and its base is not here.",
            *warnings,
        )
    base_bytes = order.origin.base_bytes if order.origin else inputs.shape.base_bytes
    for measured in (speeds, *(proof.speeds for proof in runtimes)):
        if sentence := not_faster(measured, size_bytes / base_bytes):
            warnings = (*warnings, sentence)
    drawn = _keep_calibration(order, inputs)
    layers = compressed.layers
    weights = sum(layer.weights for layer in layers)
    return EngineResult(
        report=Report(
            base=base,
            artifact=artifact,
            divergence=divergence,
            tasks=tasks,
            domains=domains,
            refusal=refusal,
            flags=flagged,
            size_bytes=size_bytes,
            base_bytes=base_bytes,
            sparsity=sum(layer.zeros for layer in layers) / weights,
            average_bits=sum(layer.bits * layer.weights for layer in layers) / weights,
            speeds=speeds,
            runtimes=runtimes,
            held_out_windows=inputs.calibration.held_out_windows if inputs.calibration else None,
            layers=layers,
            stages=compressed.stages,
            phase_seconds=journey.seconds,
            peak_memory_bytes=peak,
            compress_peak_memory_bytes=compress_peak,
            warnings=(*inputs.warnings, *_unscaled(layers), *coverage_warnings(layers, _calibration(order)), *warnings),
        ),
        calibration_tokens_sha256=inputs.calibration.sha256 if inputs.calibration else None,
        drawn=drawn,
        evaluation_tokens_sha256=inputs.evaluation.sha256 if inputs.evaluation else None,
    )


def _keep_calibration(order: WorkOrder, inputs: Inputs) -> DrawnCalibration | None:
    """What was drawn, for others to take; stored tokens are kept already."""
    if inputs.calibration is None or order.calibration_text is None:
        return None
    save_blocks(inputs.calibration, order.work_dir / CALIBRATION_FILE)
    return DrawnCalibration(
        tokenizer_sha256=tokenizer_sha256(inputs.tokenizer), held_out_windows=inputs.calibration.held_out_windows
    )


def _runtime(output_format: Format) -> Literal["transformers", "llama.cpp"]:
    """The runtime that proves a format."""
    return "llama.cpp" if output_format is Format.GGUF else "transformers"


def _unscaled(layers: tuple[LayerReport, ...]) -> Iterator[str]:
    names = [layer.name for layer in layers if layer.scaled is False]
    if names:
        yield (
            f"The inputs of {len(names)} linear layers could not be scaled, because nothing before them takes the "
            f"scale, or the recipe skips what would: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}."
        )


# What a run's parts cost, in tokens that a forward pass would have read meanwhile (measured on two cores; whatever the
# model's size, because all of it grows with the weights).
_READING = 1500.0
_SEARCHING_SCALES = 7800.0
_CLUSTERING = 10000.0
_SOLVING_COLUMNS = 5000.0
_WRITING = 1000.0  # the texts after fixed prompts
_GATHERING_HESSIANS = 0.75  # of each calibration token
_COMPARING = 0.25  # of each evaluation token: the base's head once more, and the distance of two distributions


def _compress_cost(
    recipe: tuple[Stage, ...], output_format: Format, samples: int, calibration_tokens: int, asymmetric: bool
) -> float:
    linear = [METHODS[stage.method] for stage in recipe if stage.method in METHODS]
    grid = quantizer(recipe)
    solves = isinstance(grid, Mixed) or any(Statistic.HESSIAN in method.needs for method in linear)
    # Those of stages that look across blocks, and one through the linear ones where they look at activations.
    read = sum(
        ACROSS_BLOCKS[stage.method].passes_over(stage, samples)
        * (stage.trained_tokens if isinstance(stage, Training) else calibration_tokens)
        for stage in recipe
        if stage.method in ACROSS_BLOCKS
    )
    streams = solves or any(method.needs for method in linear)
    read += calibration_tokens * streams
    if streams and asymmetric:
        # The base beside it; what its inputs have beyond the model's own takes a whole product where a Hessian takes
        # a little more than half.
        read += calibration_tokens * (1 + 2 * _GATHERING_HESSIANS + (0 if solves else _GATHERING_HESSIANS))
    sweeps = 5 if any(isinstance(stage, Gptq) and stage.damping_search for stage in recipe) else 1
    cost = _READING + read + solves * (calibration_tokens * _GATHERING_HESSIANS + sweeps * _SOLVING_COLUMNS)
    if any(isinstance(stage, Squeezellm) for stage in recipe):
        return cost + _CLUSTERING
    if isinstance(grid, UniformGrid) and grid.scale_search == "least_squares":
        # Each choice of bits is tried on some rows of a layer.
        searching = _SEARCHING_SCALES * (gguf.search_effort(grid) if output_format is Format.GGUF else 1)
        cost += searching * (1 + len(grid.choices) / 5 if isinstance(grid, Mixed) else 1)
    return cost


def _parts(order: WorkOrder, inputs: Inputs, output_format: Format) -> dict[str, Part]:
    """The run's parts in their order."""
    samples = len(inputs.calibration.tokens_NT) if inputs.calibration is not None else 0
    calibration_tokens = inputs.calibration.tokens_NT.numel() if inputs.calibration is not None else 0
    asymmetric = _calibration(order).asymmetry > 0
    compressing = _compress_cost(order.recipe, output_format, samples, calibration_tokens, asymmetric)
    parts = {
        "compress": Part(Phase.COMPRESS, compressing, "compressing"),
        "write": Part(Phase.COMPRESS, 500.0, "writing"),
    }
    evaluated = 0 if inputs.evaluation is None else inputs.evaluation.tokens_NT.numel()
    if evaluated:
        parts["evaluate_base"] = Part(Phase.EVALUATE, 1 if order.origin else evaluated, "measuring the base")
        compared = evaluated * (1 if order.origin else 1 + _COMPARING)
        parts["evaluate_artifact"] = Part(Phase.EVALUATE, compared, "measuring the artifact")
    runtime = _runtime(output_format)
    if runtime in order.runtimes:
        if order.evaluation and order.evaluation.speed:
            parts["speed"] = Part(Phase.EVALUATE, 4000.0 + _WRITING, "measuring speed")
        written = _WRITING if evaluated else 0
        parts["prove"] = Part(Phase.EVALUATE, 2000.0 + written + evaluated, f"loading the artifact in {runtime}")
    if tries_vllm(order, output_format):
        timed = 8000.0 if order.evaluation and order.evaluation.speed else 0
        parts["vllm"] = Part(Phase.EVALUATE, 8000.0 + timed + evaluated, "loading the artifact in vllm")
    return parts | domain_parts(order, inputs) | task_parts(order) | refusal_parts(order)


def _identity(order: WorkOrder, inputs: Inputs, device: torch.device) -> str:
    """All that decides the bytes of a finished block."""
    return identity_hash(
        [stage.identity() for stage in order.recipe],
        [stage.version for stage in order.recipe],
        _calibration(order).model_dump(include={"unreached_experts", "min_expert_tokens", "statistics", "asymmetry"}),
        inputs.calibration.sha256 if inputs.calibration else None,
        [blocks.sha256 for blocks in inputs.training.values()],
        fingerprint(order.model_dir),
        _keeps_zeros(order),
        str(inputs.files.storage.scale_dtype),
        sorted(inputs.files.storage.coded),
        _arithmetic(order, device),
    )


def _statistics_identity(order: WorkOrder, inputs: Inputs, device: torch.device) -> str:
    """All that decides dense statistics."""
    tokens = inputs.calibration.sha256 if inputs.calibration else None
    return identity_hash(tokens, fingerprint(order.model_dir), _arithmetic(order, device))


def _arithmetic(order: WorkOrder, device: torch.device) -> tuple[Any, ...]:
    """What rounding depends on."""
    return (
        _REVISION,
        order.dtype,
        device.type,
        torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        multiplies_bfloat16(),
        torch.get_num_threads(),
        tools(),
    )


def _calibration(order: WorkOrder) -> Calibration:
    return order.calibration or Calibration()


def _keeps_zeros(order: WorkOrder) -> bool:
    return order.origin is not None and order.origin.pruned


def _compress(
    order: WorkOrder, inputs: Inputs, device: torch.device, identity: str, journey: Journey
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
            calibration=_calibration(order),
            keep_zeros=_keeps_zeros(order),
            training={index: blocks.tokens_NT for index, blocks in inputs.training.items()},
            work_dir=order.work_dir,
            identity=identity,
            statistics_dir=order.statistics_dir,
            statistics_identity=_statistics_identity(order, inputs, device),
            on_progress=on_progress,
            should_drain=journey.asked_to_stop,
        )


def _protocol(settings: EvaluationSettings, blocks: data.TokenBlocks, order: WorkOrder) -> tuple[Protocol, str]:
    protocol = data.protocol(settings, blocks, order.dtype)
    return protocol, data.protocol_hash(protocol)


def _known_base(order: WorkOrder, inputs: Inputs) -> Evaluation | None:
    """The base's figures as the order brings them, where they were measured under this very protocol."""
    if order.baseline is None or order.evaluation is None or inputs.evaluation is None:
        return None
    _, protocol_hash = _protocol(order.evaluation, inputs.evaluation, order)
    if order.baseline.protocol_hash != protocol_hash:
        return None
    return order.baseline.model_copy(update={"cached": True})


class _SavedEvaluation(Contract):
    """The base's figures, kept with its states beside the checkpoint: a resumed run need not measure it again."""

    identity: str
    evaluation: Evaluation
    states_sha256: str


def _evaluate(
    order: WorkOrder,
    inputs: Inputs,
    compressed: CompressedModel,
    device: torch.device,
    identity: str,
    journey: Journey,
) -> tuple[Evaluation | None, Evaluation | None, Divergence | None]:
    """Base, artifact and the divergence between them, under one protocol.

    The base runs where it is here, though its perplexity may be known: the divergence needs its states. Where the
    order's model is an artifact itself, the base's figures are known or none, and there is no divergence.
    """
    if inputs.evaluation is None or order.evaluation is None:
        return None, None, None
    tokens_NT = inputs.evaluation.tokens_NT
    protocol, protocol_hash = _protocol(order.evaluation, inputs.evaluation, order)
    dtype = getattr(torch, order.dtype)

    def measure(model: ModelFiles | CompressedModel, observe: Observer | None) -> Evaluation:
        started = time.monotonic()
        value, predicted = perplexity(
            model, tokens_NT, device=device, dtype=dtype, on_progress=journey.step_or_stop, observe=observe
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

    saved, states = order.work_dir / _BASE_EVALUATION, order.work_dir / _BASE_STATES
    with journey.part("evaluate_base"):
        base = _known_base(order, inputs)
        if order.origin is None:
            mine = _saved_evaluation(saved, states, identity)
            if mine is None or mine.protocol_hash != protocol_hash:
                with StatesFile(states, tokens_NT[:, 1:].numel()) as written:
                    mine = measure(inputs.files, written)
                    kept = _SavedEvaluation(identity=identity, evaluation=mine, states_sha256=written.finish())
                write_json(saved, kept.model_dump(mode="json"))
            base = base or mine
        give_back(device)
    with journey.part("evaluate_artifact"):
        if order.origin is not None:
            return base, measure(compressed, None), None
        with Comparison(inputs.files, states, device=device, dtype=dtype) as comparison:
            artifact = measure(compressed, comparison)
        return base, artifact, comparison.result(tokens_NT, inputs.tokenizer, protocol_hash)


def _saved_evaluation(path: Path, states: Path, identity: str) -> Evaluation | None:
    try:
        saved = _SavedEvaluation.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        # Absent, or cut off while it was written: measuring again is all it costs.
        return None
    return saved.evaluation if saved.identity == identity and has_states(states, saved.states_sha256) else None


__all__ = ["device_of", "run", "tools"]
