"""What the supervisor and the engine say to each other: a work order in, JSON lines out.

The engine reads one WorkOrder (a file named on its command line), ticks arrive on its standard input, and each line it
writes on standard output is one EngineMessage. Standard error is free text for the log.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from paredown.contracts.artifact import Isolation
from paredown.contracts.job import (
    Budget,
    Calibration,
    Contract,
    DType,
    EvaluationSettings,
    Format,
    JobError,
    Progress,
    TaskSettings,
)
from paredown.contracts.recipes import Recipe
from paredown.contracts.report import Evaluation, Report, Sha256


class Origin(Contract):
    """What made the artifact that model_dir holds. Its base is not here, so nothing is measured in the base's name."""

    base_bytes: int = Field(description="Of the base; sizes are compared with these.")
    pruned: bool = Field(description="Whether weights were pruned: those that are zero stay zero.")
    baseline_required: bool = Field(description="Whether to fail, and at once, where the base's figures are not known.")


class TaskFiles(Contract):
    """A task and its rows: JSON lines that hold the fields of its definition."""

    settings: TaskSettings
    rows: Path
    fewshot: Path | None = None


class WorkOrder(Contract):
    """All that the engine needs. Paths are local and verified; there are no credentials in it."""

    model_dir: Path = Field(description="Verified files: config.json, *.safetensors or one *.gguf, tokenizer.")
    gguf_file: str | None = Field(None, description="Name of the GGUF file in model_dir, if that is the container.")
    origin: Origin | None = Field(None, description="Set where model_dir holds an artifact, not a base.")
    recipe: Recipe
    calibration: Calibration | None
    calibration_text: Path | None = Field(None, description="UTF-8 text, or JSON lines with a `text` field.")
    calibration_tokens: Path | None = Field(None, description="In the text's place: .npy, int32, N × T.")
    calibration_tokenizer_sha256: Sha256 | None = Field(None, description="Of the tokenizer that those are of.")
    evaluation: EvaluationSettings | None = Field(None, description="None skips evaluation.")
    evaluation_text: Path | None = None
    tasks: tuple[TaskFiles, ...] = Field((), description="Those of the evaluation, each with its rows.")
    domain_texts: tuple[Path, ...] = Field((), description="Those of the evaluation's domains, in their order.")
    format: Format
    dtype: DType = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    pausing: bool = True
    work_dir: Path = Field(description="Checkpoints; a directory left by an earlier epoch is resumed.")
    statistics_dir: Path | None = Field(
        None, description="Where dense statistics lie for all runs that share them; None keeps them in work_dir."
    )
    output_dir: Path = Field(description="Empty or absent; complete once the result is sent.")
    baseline: Evaluation | None = Field(None, description="The base's figures, when known under the same protocol.")
    runtimes: tuple[Literal["transformers", "llama.cpp"], ...] = Field(
        ("transformers", "llama.cpp"), description="Tried where they read the format; those of the format only."
    )
    vllm_python: Path | None = Field(
        None, description="Interpreter of an environment with vLLM, which then is tried too, where it reads the format."
    )
    require_isolation: bool = False
    rehearse: bool = Field(False, description="Only the largest block, to see what it takes; the answer is Rehearsed.")
    tick_timeout_seconds: float | None = Field(None, description="Exit when no line arrives on stdin for so long.")
    threads: int | None = Field(None, ge=1, description="torch threads; None leaves torch's own choice.")


class EngineStarted(Contract):
    type: Literal["started"] = "started"
    isolation: Isolation
    tools: dict[str, str]
    device: str


class EngineProgress(Contract):
    type: Literal["progress"] = "progress"
    progress: Progress


class DrawnCalibration(Contract):
    """The calibration's token blocks, as `CALIBRATION_FILE` in the work directory."""

    tokenizer_sha256: Sha256
    held_out_windows: int | None


class EngineResult(Contract):
    """The last line of a run that went well. `report` has no cost and no gate yet: the supervisor knows those."""

    type: Literal["result"] = "result"
    report: Report
    calibration_tokens_sha256: str | None
    drawn: DrawnCalibration | None = Field(None, description="Where calibration was drawn from a text.")
    evaluation_tokens_sha256: str | None


class Rehearsal(Contract):
    """What the model's largest block alone took on its way through the job's linear stages, writer and evaluation."""

    block: int
    block_seconds: float = Field(description="To compress the block and to make it durable.")
    checkpoint_bytes: int = Field(description="The block in the checkpoint.")
    saved_bytes: int = Field(description="Weights written in the job's format: the embeddings and the block.")
    saved_seconds: float
    read_tokens: int = Field(description="Run through the block and the head, as an evaluation does.")
    read_seconds: float
    memory_bytes: int = Field(description="The most that the process ever held in memory.")
    device_memory_bytes: int | None = Field(None, description="The most that it held on the GPU.")
    device_total_bytes: int | None = Field(None, description="Memory that the GPU has.")


class EngineRehearsed(Contract):
    """The last line of a rehearsal that went well."""

    type: Literal["rehearsed"] = "rehearsed"
    rehearsal: Rehearsal


class EngineFailure(Contract):
    """The last line of a run that went wrong in a way that has a name."""

    type: Literal["failure"] = "failure"
    error: JobError


class EngineDrained(Contract):
    """The engine stopped at a block boundary because it was asked to; the checkpoint is durable."""

    type: Literal["drained"] = "drained"


EngineMessage = EngineStarted | EngineProgress | EngineResult | EngineRehearsed | EngineFailure | EngineDrained
ENGINE_MESSAGE: TypeAdapter[EngineMessage] = TypeAdapter(Annotated[EngineMessage, Field(discriminator="type")])

# Lines that the supervisor writes to the engine's standard input.
TICK = "tick"
DRAIN = "drain"

# In the work directory: what was drawn, as numpy.save writes it (int32).
CALIBRATION_FILE = "calibration.npy"

__all__ = [
    "CALIBRATION_FILE",
    "DRAIN",
    "ENGINE_MESSAGE",
    "TICK",
    "Budget",
    "DrawnCalibration",
    "EngineDrained",
    "EngineFailure",
    "EngineMessage",
    "EngineProgress",
    "EngineRehearsed",
    "EngineResult",
    "EngineStarted",
    "Origin",
    "Rehearsal",
    "TaskFiles",
    "WorkOrder",
]
