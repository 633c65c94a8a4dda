"""What was measured of a base and an artifact, under which protocol, and what the gate says of it."""

from datetime import date
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from paredown.contracts.job import Contract, DType, RuntimeName
from paredown.contracts.tasks import TASKS, TaskName

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Protocol(Contract):
    """How quality was measured. Two figures compare only when their protocol hashes are equal."""

    source: str
    tokens_sha256: Sha256
    samples: int
    sequence_length: int
    dtype: DType
    metric: Literal["token_perplexity"] = "token_perplexity"
    version: int = 1


class Evaluation(Contract):
    """Quality of one model under one protocol. Perplexity is exp(mean negative log-likelihood per predicted token)."""

    protocol: Protocol
    protocol_hash: Sha256
    perplexity: float = Field(gt=0)
    predicted_tokens: int
    device: str
    seconds: float
    cached: bool = False


class Prediction(Contract):
    """The token that a model holds most likely."""

    token: str
    probability: float


class Exemplar(Contract):
    """A position of the evaluation text where the artifact predicts otherwise than the base."""

    sequence: int = Field(ge=0, description="Of the evaluation text, from 0.")
    position: int = Field(ge=1, description="Of the predicted token in its sequence, from 0.")
    divergence: float = Field(description="KL(base‖artifact) there, in nats.")
    context: str = Field(description="The text before that token.")
    token: str = Field(description="What the text goes on with.")
    base_probability: float = Field(description="That the base gives this token.")
    artifact_probability: float = Field(description="That the artifact gives this token.")
    base: Prediction
    artifact: Prediction


class Divergence(Contract):
    """How far the artifact's predictions lie from the base's, under the evaluation's protocol. Divergences are
    KL(base‖artifact) of one predicted token, in nats; an answer is the most likely token."""

    protocol_hash: Sha256
    predicted_tokens: int
    mean: float
    median: float
    p90: float = Field(description="90th percentile.")
    p99: float = Field(description="99th percentile.")
    maximum: float
    top1_agreement: float = Field(description="Share of positions where both give the same answer.")
    answers_lost: float = Field(
        description="Of the answers that the base has right, the share that the artifact hasn't."
    )
    answers_won: float = Field(
        description="Of the answers that the base has wrong, the share that the artifact has right."
    )
    exemplars: tuple[Exemplar, ...] = Field((), description="Passages that changed most, the largest change first.")


class Spread(Contract):
    """The middle half of the repeats: their first and third quartile."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


class BatchSpeed(Contract):
    """Decoding several sequences at once."""

    sequences: int
    decode_tokens_per_second: float = Field(description="Of all sequences together; the median over the repeats.")
    spread: Spread
    repeats: int


class Energy(Contract):
    """What a decoded token takes by a counter of the machine; the median over the repeats."""

    joules_per_token: float = Field(description="At batch 1.")
    batch_joules_per_token: float | None = Field(None, description="With `sequences` decoded at once.")
    sequences: int
    repeats: int
    counter: Literal["rapl", "nvml"]
    covers: str = Field(description="What the counter counts, in words. Other work there is counted too.")


class TaskProtocol(Contract):
    """How a task was measured. Two figures of it compare only when their protocol hashes are equal."""

    task: TaskName
    definition_sha256: Sha256 = Field(description="Of the definition in lm-eval's format.")
    data_sha256: Sha256 = Field(description="Of the rows, as JSON lines of the fields that the task reads.")
    fewshot_sha256: Sha256 | None = Field(None, description="Of the rows that examples come from.")
    num_fewshot: int = 0
    limit: int | None = None
    harness: str = Field(description="Name and version of what measured.")
    dtype: DType
    version: int = 1


class TaskMetric(Contract):
    """One figure of a task. Base and artifact answered the same rows, so the difference is a paired one."""

    name: str = Field(description="As lm-eval names it.")
    higher_is_better: bool
    base: float | None = Field(None, description="None where the base is not at hand.")
    base_stderr: float | None = None
    artifact: float
    artifact_stderr: float
    difference: float | None = Field(None, description="Artifact less base.")
    low: float | None = Field(None, description="Of the difference's 95 % interval, by paired bootstrap over rows.")
    high: float | None = None
    verdict: Literal["better", "same", "worse"] | None = Field(None, description="same where the interval holds zero.")

    @property
    def drop(self) -> float | None:
        """How much worse the artifact may be, at the worse end of the interval."""
        if self.low is None or self.high is None:
            return None
        return -self.low if self.higher_is_better else self.high


class TaskGroup(Contract):
    """The main metric over the rows of one kind."""

    name: str
    rows: int
    base: float | None
    artifact: float


class TaskResult(Contract):
    """One task on base and artifact."""

    name: TaskName
    source: str
    protocol: TaskProtocol
    protocol_hash: Sha256
    rows: int = Field(description="Those that were measured.")
    metrics: tuple[TaskMetric, ...] = Field(min_length=1, description="The main one first.")
    flipped: float | None = Field(
        None,
        description="Share of rows answered rightly by one of the two only; none where rows are not right or wrong.",
    )
    groups: tuple[TaskGroup, ...] = ()
    runtime: str
    seconds: float

    @property
    def title(self) -> str:
        return TASKS[self.name].title

    @property
    def main(self) -> TaskMetric:
        return self.metrics[0]


class DomainResult(Contract):
    """Perplexity on one language or subject. Each has a protocol of its own: domains do not compare with each other."""

    name: str
    base: Evaluation | None
    artifact: Evaluation

    @property
    def increase(self) -> float | None:
        return None if self.base is None else self.artifact.perplexity / self.base.perplexity - 1


class RefusalProtocol(Contract):
    """How refusal was measured."""

    prompts_sha256: Sha256 = Field(description="Of the prompts and of the rule that knows a refusal.")
    chat_template_sha256: Sha256
    new_tokens: int
    dtype: DType
    version: int = 1


class RefusalShare(Contract):
    """Share of the prompts of a kind that were refused."""

    kind: Literal["plain", "adversarial"]
    prompts: int
    base: float | None
    artifact: float


class RefusalChange(Contract):
    """A prompt that one of base and artifact refused, and the beginnings of both answers."""

    prompt: str
    base: str
    artifact: str


class RefusalResult(Contract):
    """Whether base and artifact decline what they should."""

    protocol: RefusalProtocol
    protocol_hash: Sha256
    shares: tuple[RefusalShare, ...]
    changed: tuple[RefusalChange, ...] = ()
    runtime: str
    seconds: float


class Flag(Contract):
    """A figure that got worse by more than its threshold, whatever the budget asks."""

    kind: Literal["task", "bias", "domain", "refusal"]
    subject: str = Field(description="The task, the category, the domain or the kind of prompts.")
    change: float = Field(description="How much worse: of a share, in the share's own unit; of a domain, a fraction.")
    threshold: float
    detail: str = Field(description="A sentence.")


class Speed(Contract):
    """Speed in one runtime: median over `repeats`. Base and artifact are measured in one run, or the artifact alone."""

    runtime: str
    device: str
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prompt_tokens: int
    new_tokens: int
    repeats: int
    load_seconds: float
    peak_memory_bytes: int = Field(
        description="Of the runtime's process or device, while it loaded and ran at batch 1."
    )
    threads: int
    decode_spread: Spread | None = Field(None, description="Of decode_tokens_per_second.")
    first_token_spread: Spread | None = Field(None, description="Of the time to the first token, in seconds.")
    batch: BatchSpeed | None = None
    energy: Energy | None = Field(
        None,
        description="None where the machine has no counter of energy that the worker may read.",
        exclude_if=lambda energy: energy is None,
    )

    @property
    def time_to_first_token_seconds(self) -> float:
        """From the prompt to the first new token: prefill, which ends with it."""
        return self.prompt_tokens / self.prefill_tokens_per_second


class Generation(Contract):
    """What a model writes after a few fixed prompts, greedily, and how much of it repeats what it wrote before."""

    prompts: int
    new_tokens: int = Field(description="Most that it wrote after each.")
    repetition: float = Field(
        description="seq-rep-4: the share of 4-grams of tokens that occurred before in the same text, 0 to 1; mean "
        "over the prompts. arXiv:1908.04319"
    )
    samples: tuple[str, ...] = Field((), description="Each prompt with what the model wrote.")


class RuntimeProof(Contract):
    """A runtime that loaded the artifact in a clean process and generated from it, or why it is not claimed."""

    runtime: RuntimeName
    version: str
    loads: bool
    perplexity: float | None = None
    sample: str | None = Field(None, description="What it generated.")
    detail: str | None = None
    generations: dict[Literal["base", "artifact"], Generation] = Field(
        {}, description="Of the artifact, and of the base where it was loaded beside it."
    )
    speeds: dict[Literal["base", "artifact"], Speed] = Field(
        {},
        exclude_if=lambda speeds: not speeds,
        description="Where this is not the format's own runtime, of which the report's `speeds` are.",
    )

    @property
    def generates(self) -> bool | None:
        """None where it was not tried."""
        return self.sample is not None if self.loads else None

    @property
    def agrees(self) -> bool | None:
        """Whether its perplexity is the report's; None where it was not measured. One that differs is no proof: the
        job fails (`runtime_disagrees`), so no report holds it."""
        return True if self.loads and self.perplexity is not None else None


class LayerReport(Contract):
    """One linear layer after compression. `error` is ‖X(W-W')ᵀ‖² / ‖XWᵀ‖² over the calibration tokens, where known."""

    name: str
    weights: int
    zeros: int = 0
    bits: float = 16.0
    error: float | None = None
    scaled: bool | None = Field(
        None, description="Whether the input's channels could be scaled; empty where no method of the recipe does that."
    )
    tokens: int | None = Field(None, description="Calibration tokens that reached it; of a mixture's experts only.")


class BlockReport(Contract):
    """One block of the model that a stage was given."""

    block: int = Field(ge=0, description="Its number in that model, from 0.")
    importance: float | None = Field(None, description="What the stage measured of it; none where it did not look.")
    kept: bool = Field(description="Whether the artifact has it; a block merged into another is not kept.")


class LossPoint(Contract):
    """A stretch of training."""

    step: int = Field(ge=1, description="Its last optimizer step, from 1.")
    loss: float = Field(description="Mean over the stretch.")


class StageReport(Contract):
    """What a stage that looks across blocks found, before the linear layers were compressed."""

    stage: int = Field(ge=0, description="Its place in the recipe, from 0.")
    method: str
    summary: str = Field(description="What it did, in a sentence.")
    measure: str = Field(description="What the importance of a block, or the loss, is.")
    blocks: tuple[BlockReport, ...] = ()
    losses: tuple[LossPoint, ...] = Field((), description="Of a stage that trains, from its first step to its last.")
    tokens_sha256: Sha256 | None = Field(None, description="Over the tokens that it trained on.")


class Cost(Contract):
    """Money, at the price per hour of a worker of the pool."""

    currency: str
    price_per_hour: float
    instance: str | None = Field(None, description="The price book's instance type; none: the price is the pool's.")
    as_of: date | None = Field(None, description="The day of the book's price.")
    job_seconds: float
    job: float
    base_per_million_tokens: float | None = Field(None, description="Decoding a million tokens at batch 1.")
    artifact_per_million_tokens: float | None = None


Figure = Literal[
    "size_ratio",
    "perplexity_increase",
    "mean_divergence",
    "p99_divergence",
    "top1_agreement",
    "answers_lost",
    "repetition_increase",
    "decode_speedup",
    "runtime_memory_bytes",
    "cost_per_million_tokens",
    "task_drop",
]


class Check(Contract):
    """One term of the budget against the report."""

    figure: Figure
    bound: Literal["most", "least"] = Field("most", description="Whether the limit is the most or the least allowed.")
    limit: float
    value: float | None = Field(description="Empty where it was not measured, which is a miss.")
    passed: bool
    detail: str | None = Field(None, description="Why it was not measured.")


class Verdict(StrEnum):
    PASSED = "passed"
    MISSED = "missed"
    OVERRIDDEN = "overridden"


class Gate(Contract):
    """The budget against the report."""

    verdict: Verdict
    checks: tuple[Check, ...]


class Report(Contract):
    """Evaluations of base and artifact under one pinned protocol, and what the run itself took."""

    base: Evaluation | None
    artifact: Evaluation | None
    divergence: Divergence | None = Field(
        None, description="Of the artifact from the base; empty where the base is not here or nothing was evaluated."
    )
    size_bytes: int = Field(description="The artifact's weight files on disk.")
    base_bytes: int = Field(description="Parameters × 2.")
    sparsity: float = Field(description="Share of the artifact's decoder linears' weights that are zero.")
    average_bits: float = Field(description="Bits for each weight of the artifact's decoder linears, scales included.")
    tasks: tuple[TaskResult, ...] = ()
    domains: tuple[DomainResult, ...] = ()
    refusal: RefusalResult | None = None
    flags: tuple[Flag, ...] = ()
    speeds: dict[Literal["base", "artifact"], Speed] = {}
    runtimes: tuple[RuntimeProof, ...] = ()
    held_out_windows: int | None = Field(
        None,
        exclude_if=lambda number: number is None,
        description="How many windows of the calibration text were left out because they share 13 tokens in a row with "
        "the text of the evaluation; none where that was not asked for.",
    )
    layers: tuple[LayerReport, ...] = ()
    stages: tuple[StageReport, ...] = ()
    phase_seconds: dict[str, float] = {}
    peak_memory_bytes: int = Field(0, description="The most that the engine held while it compressed and evaluated.")
    compress_peak_memory_bytes: int = Field(0, description="The most that it had held when it had compressed.")
    cost: Cost | None = None
    gate: Gate | None = None
    warnings: tuple[str, ...] = ()

    @property
    def size_ratio(self) -> float:
        return self.size_bytes / self.base_bytes

    def speeds_in(self, proof: RuntimeProof) -> dict[Literal["base", "artifact"], Speed]:
        """Of base and artifact in one of the runtimes; empty where it did not measure them."""
        own = self.speeds.get("artifact")
        # A speed names its runtime and then the version.
        if own is not None and own.runtime.split(" ")[0] == proof.runtime:
            return self.speeds
        return proof.speeds

    @property
    def perplexity_increase(self) -> float | None:
        if self.base is None or self.artifact is None:
            return None
        return self.artifact.perplexity / self.base.perplexity - 1

    @property
    def decode_speedup(self) -> float | None:
        """The artifact's decode speed as a multiple of the base's."""
        if "base" not in self.speeds or "artifact" not in self.speeds:
            return None
        return self.speeds["artifact"].decode_tokens_per_second / self.speeds["base"].decode_tokens_per_second

    @property
    def generations(self) -> dict[Literal["base", "artifact"], Generation]:
        """In the runtime that proved the artifact."""
        return next((proof.generations for proof in self.runtimes if proof.generations), {})

    @property
    def repetition_increase(self) -> float | None:
        """How much more of its 4-grams the artifact repeats than the base."""
        written = self.generations
        if "base" not in written or "artifact" not in written:
            return None
        return written["artifact"].repetition - written["base"].repetition

    @property
    def task_drop(self) -> float | None:
        """The largest drop of a task's main metric, at the worse end of its interval. Bias is no accuracy."""
        drops = [result.main.drop for result in self.tasks if TASKS[result.name].is_accuracy]
        known = [drop for drop in drops if drop is not None]
        return max(known) if known and len(known) == len(drops) else None
