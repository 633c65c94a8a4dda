"""Base and artifact as writers: each as a whole in a clean process, one after the other."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from paredown.contracts.runtimes import OWN_LOADER
from paredown.contracts.work import WorkOrder
from paredown.engine.errors import TaskUnfit
from paredown.engine.evaluation.speed import Role
from paredown.engine.inputs import Inputs, resolved_format
from paredown.engine.runtimes import (
    NativeProcess,
    RuntimeFailed,
    TransformersProcess,
    load_artifact,
    memory_shortage,
)


def roles(order: WorkOrder) -> tuple[Role, ...]:
    """Whom there is to ask; the base of an artifact's artifact is not here."""
    return ("artifact",) if order.origin else ("artifact", "base")


def check_writing(inputs: Inputs, device: torch.device, what: str, tokens: int) -> None:
    """Raises TaskUnfit where a model reads fewer tokens than that, or does not fit into this machine as a whole."""
    if inputs.shape.context_length < tokens:
        raise TaskUnfit(
            f"For {what}, a model reads and writes {tokens} tokens or more, and this one has room for "
            f"{inputs.shape.context_length}.",
            field="evaluation",
        )
    if shortage := memory_shortage(inputs.shape.parameters, 4, device.type):
        raise TaskUnfit(
            f"For {what}, the whole model {shortage}; leave it out, or use a larger worker.", field="evaluation"
        )


@contextmanager
def writer(order: WorkOrder, inputs: Inputs, device: torch.device, role: Role) -> Iterator[TransformersProcess]:
    """A runtime with the model loaded. Raises RuntimeLoadFailed, and TaskUnfit where it loads and does not write."""
    is_native = role == "artifact" and resolved_format(order) in OWN_LOADER
    kind = NativeProcess if is_native else TransformersProcess
    with (
        tempfile.TemporaryDirectory(prefix="writer-") as scratch,
        kind(Path(scratch), device.type, torch.get_num_threads()) as process,
    ):
        try:
            if role == "artifact":
                load_artifact(process, order.output_dir)
            else:
                process.load(order.model_dir, gguf_file=order.gguf_file, dtype=inputs.files.storage_dtype)
            yield process
        except RuntimeFailed as error:
            raise TaskUnfit(f"{process.name} does not write with the {role}: {error}.", field="evaluation") from error
