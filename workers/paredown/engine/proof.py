"""The artifact's proof: it is loaded as a user would, beside the base where speed is measured."""

import importlib.metadata
import tempfile
from pathlib import Path

import numpy
import torch

from paredown.contracts.pieces import PROVING_TOKENS
from paredown.contracts.recipes import rounds_activations
from paredown.contracts.report import Evaluation, Generation, RuntimeProof, Speed
from paredown.contracts.runtimes import OWN_LOADER
from paredown.contracts.work import WorkOrder
from paredown.engine.errors import RuntimeLoadFailed
from paredown.engine.evaluation import generation, speed
from paredown.engine.inputs import Inputs, resolved_format
from paredown.engine.progress import Journey
from paredown.engine.runtimes import (
    ROUNDED_TOLERANCE,
    TOLERANCE,
    NativeProcess,
    RuntimeFailed,
    TransformersProcess,
    load_artifact,
    memory_shortage,
    prove,
)


def prove_artifact(
    order: WorkOrder, inputs: Inputs, device: torch.device, artifact: Evaluation | None, journey: Journey
) -> tuple[RuntimeProof, dict[speed.Role, Speed], tuple[str, ...]]:
    """Load the artifact in transformers or with the native loader, beside the base where speed is asked for."""
    shape = inputs.shape
    runtime = NativeProcess if resolved_format(order) in OWN_LOADER else TransformersProcess
    # In the protocol's number type the artifact may take four bytes a parameter.
    shortage = memory_shortage(shape.parameters, 4, device.type)
    if shortage:
        version = importlib.metadata.version("paredown" if runtime is NativeProcess else "transformers")
        proof = RuntimeProof(runtime=runtime.name, version=version, loads=False, detail=shortage)
        return proof, {}, (f"The artifact was not loaded in {proof.runtime}: it {shortage}.",)
    settings = speed.SpeedSettings().within(shape.context_length)
    prompt = prompt_of(inputs, settings.prompt_tokens)
    speeds: dict[speed.Role, Speed] = {}
    generations: dict[speed.Role, Generation] = {}
    warnings: tuple[str, ...] = ()
    with (
        tempfile.TemporaryDirectory(prefix="runtime-") as scratch,
        runtime(Path(scratch), device.type, torch.get_num_threads()) as process,
    ):
        if order.evaluation and order.evaluation.speed:
            with journey.part("speed"):
                speeds, generations, warnings = _measure_speed(order, inputs, process, prompt, settings)
        with journey.part("prove"):
            if not process.loaded:
                load_artifact(process, order.output_dir)
            if order.evaluation:
                generations |= _generations(process, inputs)
            tokens = None
            if inputs.evaluation is not None:
                tokens = Path(scratch) / "evaluation-tokens.npy"
                numpy.save(tokens, inputs.evaluation.tokens_NT.numpy())
            proof = prove(
                process,
                prompt=prompt[: max(1, min(16, shape.context_length // 4))],
                new_tokens=max(1, min(PROVING_TOKENS, shape.context_length // 2)),
                tokens=tokens,
                dtype=order.dtype,
                reported=artifact.perplexity if artifact else None,
                tolerance=ROUNDED_TOLERANCE if rounds_activations(order.recipe) else TOLERANCE,
            )
    return proof.model_copy(update={"generations": generations}), speeds, warnings


def _generations(artifact: TransformersProcess, inputs: Inputs) -> dict[speed.Role, Generation]:
    """Raises RuntimeLoadFailed."""
    try:
        return generation.of_roles({"artifact": artifact}, inputs)
    except RuntimeFailed as error:
        raise RuntimeLoadFailed(f"{artifact.name} loads the artifact, but does not run it: {error}") from error


def _measure_speed(
    order: WorkOrder,
    inputs: Inputs,
    artifact: TransformersProcess,
    prompt: list[int],
    settings: speed.SpeedSettings,
) -> tuple[dict[speed.Role, Speed], dict[speed.Role, Generation], tuple[str, ...]]:
    """Speeds, and what the base writes while it is here. Raises RuntimeLoadFailed for the artifact; a base that does
    not load leaves only these unknown.

    An artifact that was made of another is measured alone: its base is not here.
    """
    if order.origin is not None:
        artifact.wait_until_ready()
        load_artifact(artifact, order.output_dir)
        try:
            return speed.measure({"artifact": artifact}, prompt, settings), {}, ()
        except RuntimeFailed as error:
            return {}, {}, (f"Speed was not measured: {error}.",)
    shortage = memory_shortage(2 * inputs.shape.parameters, 4, artifact.device)
    if shortage:
        return {}, {}, (f"Speed was not measured: the base beside the artifact {shortage}.",)
    with TransformersProcess(artifact.scratch, artifact.device, artifact.threads) as base:
        # Both start at once; then each loads while nothing else runs, because that is timed.
        try:
            artifact.wait_until_ready()
            base.wait_until_ready()
            base.load(order.model_dir, gguf_file=order.gguf_file, dtype=inputs.files.storage_dtype)
            load_artifact(artifact, order.output_dir)
            measured = speed.measure({"base": base, "artifact": artifact}, prompt, settings)
            return measured, generation.of_roles({"base": base}, inputs), ()
        except RuntimeFailed as error:
            return {}, {}, (f"Speed was not measured: {error}.",)


def prompt_of(inputs: Inputs, length: int) -> list[int]:
    """The first tokens of the evaluation text, else of the calibration text, else the vocabulary's."""
    blocks = inputs.evaluation or inputs.calibration
    known = blocks.tokens_NT.flatten()[:length].tolist() if blocks else []
    return [*known, *(index % inputs.shape.vocab_size for index in range(length - len(known)))]
