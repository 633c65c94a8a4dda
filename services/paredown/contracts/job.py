"""Jobs as users see them: what they ask for, what they are told back, and what a job would need."""

import hashlib
import json
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from paredown.contracts.recipes import (
    Mixed,
    Quantizer,
    Recipe,
    Stage,
    Training,
    UniformGrid,
    rounds_activations,
    storing,
)
from paredown.contracts.shapes import ModelShape
from paredown.contracts.tasks import TASKS, TaskName

_URI = re.compile(r"^[a-z0-9]+://\S+$")


def _uri(text: str) -> str:
    """Raises ValueError with how addresses are written."""
    if _URI.match(text):
        return text
    if any(character.isspace() for character in text):
        raise ValueError("write an address without spaces; %20 stands for one")
    if "://" in text:
        raise ValueError("write the scheme in small letters, as in file:// or https://")
    raise ValueError("write an address with its scheme; a file's is file:// and its full path: file:///data/a.txt")


Uri = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=3, max_length=2048),
    AfterValidator(_uri),
    Field(json_schema_extra={"pattern": _URI.pattern}),
]
# Where a mistake is, as pydantic says it: names, and places in lists.
FieldPath = tuple[str | int, ...]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]
PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
DType = Literal["float32", "bfloat16"]
RuntimeName = Literal["transformers", "native", "vllm", "llama.cpp"]


class Contract(BaseModel):
    """Frozen, and strict about names: a misspelt field is an error, never ignored.

    A number that is not finite is written as a string, which reads back as that number: a broken model's perplexity
    is infinite, and that is evidence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")


# What names token blocks of the catalogue in the place of a text.
CALIBRATION_SCHEME = "calibration://"


class Calibration(Contract):
    """Text whose activations a method sees: `samples` sequences of `sequence_length` tokens, drawn with `seed`."""

    source: Uri = Field(
        "builtin://python-docs",
        description="Text to calibrate on; or calibration://ID, the very tokens of an earlier job, of which samples, "
        "sequence_length and seed are part.",
    )
    samples: int = Field(32, ge=1, le=4096, description="Sequences.")
    sequence_length: int = Field(512, ge=16, le=131072, description="Tokens in each sequence.")
    seed: int = Field(0, ge=0, lt=2**32, description="Which sequences are drawn.")
    unreached_experts: Literal["uniform", "dense", "fail"] = Field(
        "uniform",
        description="Experts of a mixture that too few tokens reach: uniform compresses them as if every input channel "
        "were equally active, dense leaves them as they are, fail ends the job.",
    )
    min_expert_tokens: int = Field(
        32, ge=1, le=65536, description="Calibration tokens from which on an expert counts as reached."
    )
    statistics: Literal["sequential", "dense"] = Field(
        "sequential",
        description="Of which inputs: sequential takes those that the compressed layers before leave, so later layers "
        "make up for earlier ones; dense takes the base model's, which are the same for every recipe.",
    )
    asymmetry: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: share == 0,
        description="Share of what earlier layers' errors change in a layer's output that its weights make up for "
        "before they are compressed, by the base's inputs beside its own (GPTAQ, arXiv:2504.02692); 0.5 does well. "
        "Takes another forward pass; only with sequential statistics.",
    )
    exclude_held_out: bool = Field(
        False,
        exclude_if=lambda excluded: not excluded,
        description="Draw no sequence that shares 13 tokens in a row with the text that perplexity is measured on.",
    )

    @model_validator(mode="after")
    def _is_drawn_once(self) -> "Calibration":
        if self.stored_id is not None and self.exclude_held_out:
            raise ValueError(
                "exclude_held_out says what is drawn from a text, and the tokens of a calibration:// are drawn "
                "already; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _knows_errors(self) -> "Calibration":
        if self.asymmetry and self.statistics == "dense":
            raise ValueError(
                "asymmetry makes up for the errors of earlier layers, which dense statistics know nothing of; set "
                "statistics to sequential, or asymmetry to 0"
            )
        return self

    def refusal(self, shape: ModelShape) -> str | None:
        """Why this model cannot be calibrated so, for the user; None where it can."""
        if self.asymmetry and shape.has_experts:
            return (
                "asymmetry compares what each token gives in the base and in the compressed model, but a mixture of "
                f"experts such as {shape.model_type} sends it to other experts in each; set asymmetry to 0."
            )
        return None

    @property
    def stored_id(self) -> UUID | None:
        """The calibration of the catalogue whose tokens are taken; None where they are drawn from a text."""
        if not self.source.startswith(CALIBRATION_SCHEME):
            return None
        try:
            return UUID(self.source.removeprefix(CALIBRATION_SCHEME))
        except ValueError as error:
            raise ValueError(f"{self.source} names no calibration; write calibration:// and its id") from error


class TaskSettings(Contract):
    """A benchmark, measured through lm-eval on base and artifact alike."""

    name: TaskName
    source: Uri | None = Field(
        None,
        description="Its rows: JSON lines, CSV or Parquet, or a directory of JSON lines. Empty takes the file on the "
        "hub, where Pare knows one.",
    )
    limit: int | None = Field(None, ge=1, le=1_000_000, description="Rows measured, from the start; empty takes all.")
    num_fewshot: int = Field(0, ge=0, le=64, description="Solved examples before each row.")
    fewshot_source: Uri | None = Field(None, description="Where the examples come from: other rows of the same kind.")

    @model_validator(mode="after")
    def _fits_its_task(self) -> "TaskSettings":
        task = TASKS[self.name]
        if self.address is None:
            raise ValueError(f"Pare knows no file on the hub for {self.name}; name its rows in source")
        if self.num_fewshot and not task.shots:
            raise ValueError(f"{self.name} is measured without examples; leave num_fewshot out")
        if bool(self.num_fewshot) != (self.fewshot_source is not None):
            raise ValueError("num_fewshot and fewshot_source go together")
        return self

    @property
    def address(self) -> str | None:
        """Where the rows lie."""
        return self.source or TASKS[self.name].source


class DomainSettings(Contract):
    """A text of one language or subject, beside the one that perplexity is measured on."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
    source: Uri = Field(description="Held-out text of this language or subject.")


class EvaluationSettings(Contract):
    """The protocol under which base and artifact are measured, the same for both."""

    source: Uri = Field("builtin://python-docs", description="Held-out text to measure perplexity on.")
    samples: int = Field(20, ge=1, le=4096, description="Sequences measured, from the start of the text.")
    sequence_length: int = Field(512, ge=16, le=131072, description="Tokens in each sequence.")
    speed: bool = Field(True, description="Measure prefill and decode speed of base and artifact, in one run.")
    tasks: tuple[TaskSettings, ...] = Field(
        (), max_length=len(TASKS), description="Benchmarks to measure base and artifact on."
    )
    domains: tuple[DomainSettings, ...] = Field(
        (),
        max_length=16,
        description="Texts whose perplexity is measured one by one, as many and as long sequences of each.",
    )
    refusal: bool = Field(False, description="Ask base and artifact what they should refuse, plainly and with tricks.")
    runtimes: tuple[RuntimeName, ...] | None = Field(
        None,
        min_length=1,
        max_length=2,
        exclude_if=lambda runtimes: runtimes is None,
        description="Runtimes that prove the artifact. The format's own always does; empty tries vllm too, where the "
        "worker has it and it reads the artifact. Naming vllm makes it a must; naming others alone leaves it out.",
    )

    @model_validator(mode="after")
    def _named_once(self) -> "EvaluationSettings":
        names = [task.name for task in self.tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks has {repeated[0]} more than once")
        if len({domain.name for domain in self.domains}) < len(self.domains):
            raise ValueError("two domains have the same name")
        return self

    def rows(self) -> dict[str, str]:
        """Addresses of all rows that tasks read, by the field of the job that names each."""
        found: dict[str, str] = {}
        for index, task in enumerate(self.tasks):
            assert task.address is not None, "checked when the task was made"
            found[f"evaluation.tasks.{index}.source"] = task.address
            if task.fewshot_source:
                found[f"evaluation.tasks.{index}.fewshot_source"] = task.fewshot_source
        return found


def _term(description: str, **bounds: Any) -> Any:
    """A term that a budget may have. Left out of JSON where there is none, so that a worker of the release before can
    read a budget that has none of what it does not know."""
    return Field(None, description=description, exclude_if=lambda limit: limit is None, **bounds)


class Budget(Contract):
    """The contract of a job: a report that misses any term ends the job `rejected`. What was not measured is missed."""

    max_size_ratio: float | None = Field(
        None, gt=0, le=4, description="Largest artifact, as a share of the base bytes (parameters × 2)."
    )
    max_perplexity_increase: float | None = Field(
        None, ge=0, le=100, description="Largest rise in perplexity over the base, as a fraction: 0.05 is 5 %."
    )
    max_mean_divergence: float | None = _term(
        "Largest mean divergence from the base for each predicted token, KL(base‖artifact) in nats.", ge=0, le=100
    )
    max_p99_divergence: float | None = _term(
        "Largest 99th percentile of that divergence: how far the worst hundredth of predictions may lie.", ge=0, le=100
    )
    min_top1_agreement: float | None = _term(
        "Smallest share of positions where base and artifact hold the same token most likely.", gt=0, le=1
    )
    max_answers_lost: float | None = _term(
        "Of the tokens that the base predicts correctly, the largest share that the artifact may get wrong.", ge=0, le=1
    )
    max_repetition_increase: float | None = _term(
        "How much more the artifact's free text may repeat itself than the base's: 0.1 is 10 % more of its 4-grams.",
        ge=0,
        le=1,
    )
    min_decode_speedup: float | None = _term(
        "Smallest decode speed, as a multiple of the base's in the same runtime and run.", gt=0, le=1000
    )
    max_runtime_memory_bytes: int | None = _term("Most memory that the runtime may take with the artifact.", gt=0)
    max_cost_per_million_tokens: float | None = _term(
        "Most that decoding a million tokens at batch 1 may cost, in the currency of the service.", gt=0
    )
    max_task_drop: float | None = _term(
        "Largest drop of any task's main metric below the base's: 0.02 is two points of a hundred. Judged at the worse "
        "end of the interval, so that too few rows miss it too.",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _some_term(self) -> "Budget":
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("a budget needs at least one term, such as max_size_ratio or max_perplexity_increase")
        return self


# A preset is its terms: a job keeps those, so it is judged by what was asked for, whatever later releases choose. The
# default's are measured by every evaluation, in the memory of a block, with or without a runtime (docs/evaluation.md).
BUDGET_PRESETS: dict[str, Budget] = {
    "default": Budget(max_perplexity_increase=0.25, max_mean_divergence=0.25, min_top1_agreement=0.75)
}


def _preset(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in BUDGET_PRESETS:
        raise ValueError(f"there is no budget {value!r}; give its terms, or {' or '.join(BUDGET_PRESETS)}")
    return BUDGET_PRESETS[value]


# A budget, or the name of a preset in its place.
BudgetChoice = Annotated[
    Budget | None, BeforeValidator(_preset, json_schema_input_type=Budget | Literal["default"] | None)
]


class Format(StrEnum):
    """The container of the artifact's weights."""

    AUTO = "auto"
    COMPRESSED_TENSORS = "compressed-tensors"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    NATIVE = "native"
    GPTQ = "gptq"
    AWQ = "awq"


def automatic_format(recipe: tuple[Stage, ...]) -> Format:
    """What `auto` stands for: the format that stores what the recipe leaves, and that most runtimes read."""
    stage = storing(recipe)
    if stage is None:
        return Format.SAFETENSORS
    return Format.NATIVE if stage.native else Format.COMPRESSED_TENSORS


def format_refusal(file_format: Format, recipe: tuple[Stage, ...]) -> tuple[FieldPath, str] | None:
    """(the field to change, why as a clause) where a format cannot hold what a recipe leaves; None where it can."""
    if refusal := _gguf_alone(file_format, recipe):
        return refusal
    reason = _storing_refusal(file_format, recipe)
    return None if reason is None else (("format",), reason)


def _storing_refusal(file_format: Format, recipe: tuple[Stage, ...]) -> str | None:
    stage = storing(recipe)
    if file_format is Format.COMPRESSED_TENSORS:
        if stage is None:
            return "format compressed-tensors needs a stage that quantizes; use safetensors for pruned models"
        if stage.native:
            return (
                f"compressed-tensors cannot hold what {stage.method} makes of weights; use native, or safetensors, "
                "which stores them dense"
            )
    if file_format is Format.NATIVE and stage is None:
        return (
            "format native needs a stage that quantizes or factorizes; use safetensors, which every runtime reads, "
            "for all other models"
        )
    if rounds_activations(recipe) and file_format not in (Format.AUTO, Format.COMPRESSED_TENSORS):
        return "the recipe rounds activations, which only format compressed-tensors can say; use that, or auto"
    if file_format in (Format.GPTQ, Format.AWQ):
        if stage is None:
            return f"format {file_format} needs a stage that quantizes; use safetensors for all other models"
        if stage.native or isinstance(stage, Mixed):
            return (
                f"{file_format} cannot hold what {stage.method} makes of weights, only integers on one grid for the "
                "whole model; use native, or rtn, gptq or awq"
            )
    if file_format is Format.GGUF and stage is not None and stage.native:
        return f"gguf cannot hold what {stage.method} makes of weights; use native"
    return None


def _gguf_alone(file_format: Format, recipe: tuple[Stage, ...]) -> tuple[FieldPath, str] | None:
    stage = storing(recipe)
    if not isinstance(stage, Quantizer) or file_format is Format.GGUF:
        return None
    other = "" if stage.native else "set format to gguf, or "
    where = ("recipe", recipe.index(stage))
    if stage.embeddings < 8:
        reason = f"only gguf holds embeddings in {stage.embeddings} bits; {other}set embeddings to 8 or 16"
        return (*where, "embeddings"), reason
    if isinstance(stage, UniformGrid) and stage.k_quant:
        return (*where, "k_quant"), f"only gguf holds K-quants; {other}set k_quant to false"
    return None


def _tasks_refusal(
    evaluation: EvaluationSettings, budget: Budget | None, file_format: Format
) -> tuple[FieldPath, str] | None:
    """(the field to change, why as a clause) where tasks, budget and format do not go together."""
    judged = any(TASKS[task.name].is_accuracy for task in evaluation.tasks)
    if budget is not None and budget.max_task_drop is not None and not judged:
        return ("budget", "max_task_drop"), "it needs a task in evaluation.tasks that measures accuracy"
    written = next((task.name for task in evaluation.tasks if TASKS[task.name].generates), None)
    if written and file_format is Format.GGUF:
        return ("evaluation", "tasks"), (
            f"{written} reads what a model writes, which is measured in transformers, and that reads no gguf as it is"
        )
    return None


def _calibration_refusal(calibration: Calibration, recipe: tuple[Stage, ...]) -> tuple[FieldPath, str] | None:
    """(the field to change, why as a clause) where a recipe cannot do with stored tokens."""
    trains = next((stage for stage in recipe if isinstance(stage, Training)), None)
    if trains is None or calibration.stored_id is None:
        return None
    return ("calibration", "source"), (
        f"{trains.title} trains on the calibration's text, of which {CALIBRATION_SCHEME} keeps only the tokens that "
        "were drawn; name the text"
    )


def _misfit(field: FieldPath, reason: str) -> ValidationError:
    """What a validator of the whole raises to blame one field."""
    error = PydanticCustomError("value_error", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data("JobSpec", [InitErrorDetails(type=error, loc=field, input=None)])


class JobSpec(Contract):
    """All that decides a job's result. Immutable once submitted."""

    model: Uri = Field(
        description="Where the model lies: pkg:// file:// https:// hf:// or s3://; or artifact://ID, an artifact of "
        "the catalogue to compress further."
    )
    recipe: Recipe
    calibration: Calibration = Calibration()
    evaluation: EvaluationSettings = EvaluationSettings()
    budget: BudgetChoice = Field(None, description="What the artifact must meet: terms, or `default`.")
    format: Format = Field(
        Format.AUTO,
        description="auto: native where a stage leaves what no stock runtime reads, compressed-tensors where one "
        "quantizes, else safetensors, which stores every weight dense. gguf is for llama.cpp; gptq and awq are the "
        "checkpoint layouts of AutoGPTQ and AutoAWQ.",
    )
    dtype: DType = Field("float32", description="Number type of the forward passes.")
    pool: PoolName | None = Field(None, description="Worker pool; empty lets the plan choose.")
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")
    run_at: AwareDatetime | None = Field(None, description="Not before this time.")
    deadline_at: AwareDatetime | None = Field(None, description="Failed when not finished by then.")
    canary: bool = Field(
        False,
        description="Rehearse first: compress the largest block and save it on the worker itself, and go on only if "
        "memory, disk and deadline suffice by what that took.",
        exclude_if=lambda wanted: not wanted,
    )
    name: str | None = Field(None, min_length=1, max_length=120, description="Name of the artifact in the catalogue.")
    tags: tuple[Tag, ...] = Field((), max_length=32)

    @model_validator(mode="after")
    def _format_fits(self) -> "JobSpec":
        refusal = (
            format_refusal(self.format, self.recipe)
            or _tasks_refusal(self.evaluation, self.budget, self.resolved_format)
            or _calibration_refusal(self.calibration, self.recipe)
        )
        if refusal is None and self.run_at and self.deadline_at and self.deadline_at <= self.run_at:
            refusal = ("deadline_at",), "it must be later than run_at"
        if refusal is not None:
            raise _misfit(*refusal)
        return self

    @property
    def resolved_format(self) -> Format:
        return automatic_format(self.recipe) if self.format is Format.AUTO else self.format


class RecipeFile(Contract):
    """A YAML file for `pare run` and `pare submit`."""

    recipe: Recipe
    calibration: Calibration = Calibration()
    evaluation: EvaluationSettings = EvaluationSettings()
    budget: BudgetChoice = None
    format: Format = Format.AUTO
    dtype: DType = "float32"

    def job(self, model: str, **more: Any) -> JobSpec:
        return JobSpec(model=model, **{name: getattr(self, name) for name in type(self).model_fields}, **more)


class JobState(StrEnum):
    """Owned by core/jobs.py; the arrows are in docs/architecture.md."""

    QUEUED = "queued"  # waits for a worker, perhaps until run_at
    RUNNING = "running"  # a worker holds the lease
    SUCCEEDED = "succeeded"  # an artifact that met its budget
    REJECTED = "rejected"  # an artifact that missed its budget, with the evidence
    FAILED = "failed"  # no artifact; error says why; a person may retry
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Phase(StrEnum):
    """Where a running job is. A column for people to read, not a state."""

    FETCH = "fetch"
    CHECK = "check"
    COMPRESS = "compress"
    EVALUATE = "evaluate"
    UPLOAD = "upload"


class Progress(Contract):
    """Last word of the worker. `fraction` is of the whole job, 0 to 1."""

    phase: Phase
    fraction: float = Field(ge=0, le=1)
    block: int | None = Field(None, ge=0, description="Blocks finished in this phase.")
    num_blocks: int | None = Field(None, ge=1)
    eta_seconds: float | None = Field(None, ge=0)
    message: str = ""


class JobError(Contract):
    """Why a job failed: `code` is stable, `detail` is a sentence that says what to do."""

    code: str
    detail: str
    field: str | None = None
    retryable: bool = False


class Corrected(Contract):
    """A figure of the plan beside what a rehearsal makes of it."""

    planned: float
    expected: float


class Canary(Contract):
    """What the worker learned of a job by rehearsing it: its largest block, compressed and saved, and a small object in
    the store."""

    passed: bool = Field(description="Whether the job went on.")
    refusal: str | None = Field(None, description="Why it did not.")
    at: AwareDatetime
    block: int = Field(description="The largest one, which was compressed.")
    num_blocks: int = Field(description="Blocks that the job compresses.")
    block_seconds: float = Field(description="To compress the block and to make it durable.")
    rehearsal_memory_bytes: int = Field(description="The most that the rehearsal held in memory.")
    rehearsal_device_memory_bytes: int | None = Field(None, description="The most that it held on the GPU.")
    saved_bytes: int = Field(description="Weights written in the job's format: the embeddings and the block.")
    saved_seconds: float
    store_seconds: float = Field(description="To put a small object into the store and to delete it.")
    seconds: Corrected = Field(description="From the end of the rehearsal to that of the job.")
    memory_bytes: Corrected
    device_memory_bytes: Corrected | None = Field(None, description="Of memory_bytes, what lies on the GPU.")
    disk_bytes: Corrected = Field(description="Beside the model itself.")


class JobView(Contract):
    """A job as the API shows it."""

    id: UUID
    project: str
    sweep_id: UUID | None = None
    state: JobState
    phase: Phase | None
    progress: Progress | None
    spec: JobSpec
    recipe_hash: str
    recipe_name: str
    pool: str
    priority: int
    epoch: int
    failures: int
    cancel_requested: bool
    error: JobError | None
    canary: Canary | None = Field(
        None, description="Once a job that asked for it was rehearsed.", exclude_if=lambda canary: canary is None
    )
    artifact_id: UUID | None
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None


class JobEvent(Contract):
    """One line of a job's history; `seq` counts from 1 without gaps within a job."""

    job_id: UUID
    seq: int
    at: datetime
    type: Literal[
        "queued",
        "claimed",
        "canary",
        "progress",
        "requeued",
        "cancel_requested",
        "succeeded",
        "rejected",
        "failed",
        "cancelled",
        "retried",
    ]
    data: dict[str, Any]

    @property
    def terminal(self) -> bool:
        return self.type in ("succeeded", "rejected", "failed", "cancelled")


class Interval(Contract):
    """Where a planned figure is expected to end."""

    low: float
    high: float


class Plan(Contract):
    """What a job would need: from configuration, and from what finished jobs took beside their plans."""

    model: Uri
    model_type: str
    parameters: int
    base_bytes: int = Field(description="Parameters × 2; for an artifact, those of the model it was made of.")
    recipe_name: str
    recipe_hash: str
    format: Format
    pool: str
    memory_bytes: int = Field(description="Peak of the engine's process, on the GPU too where the pool has one.")
    device_memory_bytes: int | None = Field(
        None, description="Of memory_bytes, what lies on the GPU; empty where the pool has none."
    )
    disk_bytes: int = Field(description="Cache, work directory and artifact together.")
    download_bytes: int
    output_bytes: int = Field(description="The artifact's weights.")
    size_ratio: float = Field(description="output_bytes over base_bytes.")
    seconds: float
    cost: float
    currency: str
    pausing: bool = Field(description="Whether paused activations fit in memory; if not, blocks rerun for each linear.")
    history_jobs: int = Field(
        0, description="Finished jobs of the pool that corrected the figures; 0 where they are the formulas' alone."
    )
    memory_interval: Interval | None = Field(None, description="Of memory_bytes: where four of five such jobs ended.")
    device_memory_interval: Interval | None = Field(None, description="Of device_memory_bytes.")
    disk_interval: Interval | None = Field(None, description="Of disk_bytes.")
    output_interval: Interval | None = Field(None, description="Of output_bytes.")
    seconds_interval: Interval | None = Field(None, description="Of seconds.")
    cost_interval: Interval | None = Field(None, description="Of cost.")
    warnings: tuple[str, ...] = ()


class PlanOutcome(Contract):
    """A finished job: what its plan's formulas said, without any correction, and what was measured."""

    job_id: UUID
    recipe_name: str
    pool: str
    planned_seconds: float
    seconds: float
    planned_memory_bytes: int
    memory_bytes: int = Field(description="The most that the engine held.")
    planned_output_bytes: int
    output_bytes: int
    created_at: datetime


class PlanOutcomes(Contract):
    """The latest jobs, newest first."""

    items: tuple[PlanOutcome, ...]


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()
