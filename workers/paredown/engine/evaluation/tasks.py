"""Tasks through lm-eval, on base and artifact over the same rows.

lm-eval builds the requests and judges the answers, by the definitions in task_files; models answer here (task_models).
Tasks that score text run in the block stream; those that need a model to write run in transformers, or in the native
loader, in a clean process.
"""

import importlib.metadata
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from paredown.contracts.artifact import sha256_file
from paredown.contracts.job import Contract, Phase, content_hash
from paredown.contracts.report import TaskGroup, TaskMetric, TaskProtocol, TaskResult
from paredown.contracts.tasks import TASKS, TaskName
from paredown.contracts.work import TaskFiles, WorkOrder
from paredown.engine.errors import TaskUnfit
from paredown.engine.evaluation import paired, task_files
from paredown.engine.evaluation.speed import Role
from paredown.engine.evaluation.writing import check_writing, roles, writer
from paredown.engine.formats.files import write_json
from paredown.engine.inputs import Inputs
from paredown.engine.memory import give_back
from paredown.engine.progress import Journey, Part
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelReader

# lm-eval's own, by which it draws examples.
_FEWSHOT_SEED = 1234
_BASE_ANSWERS = "base-tasks.json"
# Bytes of rows for each token that is run, roughly.
_BYTES_A_TOKEN = 3


class Answers(Contract):
    """One model's, row by row, under the names that lm-eval gives its metrics."""

    values: dict[str, tuple[float, ...]]
    groups: tuple[str, ...] = ()


class _SavedAnswers(Contract):
    """The base's, kept beside the checkpoint so that a resumed run need not ask again."""

    identity: str
    answers: dict[str, Answers]


def task_parts(order: WorkOrder) -> dict[str, Part]:
    """Parts of the run that measure tasks, in their order."""

    def cost(tasks: Sequence[TaskFiles]) -> float:
        return max(1.0, sum(task.rows.stat().st_size for task in tasks) / _BYTES_A_TOKEN)

    parts = {}
    if scored := _scored(order):
        if order.origin is None:
            parts["tasks_base"] = Part(Phase.EVALUATE, cost(scored), "measuring tasks on the base")
        parts["tasks_artifact"] = Part(Phase.EVALUATE, cost(scored), "measuring tasks on the artifact")
    if written := _written(order):
        parts["tasks_written"] = Part(Phase.EVALUATE, 10 * cost(written), "measuring what the models write")
    return parts


def check_tasks(order: WorkOrder, inputs: Inputs, device: torch.device) -> None:
    """Refuse before any work what cannot be measured after it. Raises TaskUnfit."""
    if not order.tasks:
        return
    # lm-eval takes seconds to import and tens of megabytes.
    from paredown.engine.evaluation.task_models import NEW_TOKENS, prefix_token

    prefix_token(inputs.tokenizer)
    for index, task in enumerate(order.tasks):
        if task.fewshot is not None and _lines(task.fewshot) < task.settings.num_fewshot:
            raise TaskUnfit(
                f"{task.settings.name} wants {task.settings.num_fewshot} examples, and fewshot_source has "
                f"{_lines(task.fewshot)} rows.",
                field=f"evaluation.tasks.{index}.num_fewshot",
            )
    if written := _written(order):
        # One token at least must be read.
        check_writing(inputs, device, written[0].settings.name, NEW_TOKENS + 1)


def measure_scored(
    order: WorkOrder,
    inputs: Inputs,
    compressed: CompressedModel,
    device: torch.device,
    identity: str,
    journey: Journey,
) -> tuple[TaskResult, ...]:
    """Tasks that score text, by the block stream; of an artifact's artifact without the base, which is not here."""
    tasks = _scored(order)
    if not tasks:
        return ()
    from paredown.engine.evaluation.task_models import BlockStreamLM

    protocols = {task.settings.name: _protocol(task, order) for task in tasks}

    def ask(model: ModelReader) -> dict[TaskName, Answers]:
        give_back(device)
        lm = BlockStreamLM(
            model,
            inputs.tokenizer,
            context=inputs.shape.context_length,
            device=device,
            dtype=getattr(torch, order.dtype),
            on_progress=journey.step_or_stop,
        )
        return answers_of(lm, tasks)

    started = time.monotonic()
    base = None
    if order.origin is None:
        with journey.part("tasks_base"):
            base = _base_answers(order, identity, protocols)
            if base is None:
                base = ask(inputs.files)
                saved = {content_hash(protocols[name].model_dump(mode="json")): base[name] for name in protocols}
                write_json(order.work_dir / _BASE_ANSWERS, _SavedAnswers(identity=identity, answers=saved).model_dump())
    with journey.part("tasks_artifact"):
        artifact = ask(compressed)
    seconds = round(time.monotonic() - started, 3)
    return tuple(
        _result(task, protocols[task.settings.name], base, artifact, f"block stream on {device.type}", seconds)
        for task in tasks
    )


def measure_written(order: WorkOrder, inputs: Inputs, device: torch.device, journey: Journey) -> tuple[TaskResult, ...]:
    """Tasks that need a model to write. Raises RuntimeLoadFailed, TaskUnfit."""
    tasks = _written(order)
    if not tasks:
        return ()
    from paredown.engine.evaluation.task_models import RuntimeLM

    started = time.monotonic()
    asked: dict[Role, dict[TaskName, Answers]] = {}
    runtime = ""
    with journey.part("tasks_written"):
        present = roles(order)
        for turn, role in enumerate(present):
            with writer(order, inputs, device, role) as process:

                def on_progress(done: int, total: int, turn: int = turn) -> None:
                    journey.step_or_stop(turn * total + done, len(present) * total)

                lm = RuntimeLM(
                    process,
                    inputs.tokenizer,
                    context=inputs.shape.context_length,
                    dtype=order.dtype,
                    on_progress=on_progress,
                )
                asked[role] = answers_of(lm, tasks)
                runtime = f"{process.name} {process.version} on {device.type}"
    seconds = round(time.monotonic() - started, 3)
    return tuple(
        _result(task, _protocol(task, order), asked.get("base"), asked["artifact"], runtime, seconds) for task in tasks
    )


def _scored(order: WorkOrder) -> list[TaskFiles]:
    return [task for task in order.tasks if not TASKS[task.settings.name].generates]


def _written(order: WorkOrder) -> list[TaskFiles]:
    return [task for task in order.tasks if TASKS[task.settings.name].generates]


def answers_of(lm: Any, tasks: Sequence[TaskFiles]) -> dict[TaskName, Answers]:
    """What a model answers, judged by lm-eval."""
    from lm_eval import evaluate

    with _loaded(tasks) as loaded:
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        rows = {}
        for task in tasks:
            name = task_files.lm_eval_name(task.settings.name)
            present = len(loaded["tasks"][name].eval_docs)
            rows[name] = list(range(min(present, task.settings.limit or present)))
        found = evaluate(lm=lm, task_dict=loaded, samples=rows, bootstrap_iters=0, log_samples=True)
    return {task.settings.name: _answers(task.settings.name, found["samples"]) for task in tasks}


@contextmanager
def _loaded(tasks: Sequence[TaskFiles]) -> Iterator[Any]:
    """lm-eval's own tasks, over local files alone and with every cache in a directory that goes with them."""
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="task-files-") as directory:
        names = task_files.write(Path(directory), tasks, cache_dir=Path(directory) / "cache")
        yield TaskManager(include_path=directory, include_defaults=False).load(names)


def _answers(task: TaskName, samples: dict[str, list[dict[str, Any]]]) -> Answers:
    values: dict[str, list[float]] = {}
    groups: dict[int, str] = {}
    for sample in sorted(samples[task_files.lm_eval_name(task)], key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            values.setdefault(name, []).append(float(sample[metric]))
        if group := TASKS[task].group:
            groups[sample["doc_id"]] = str(sample["doc"][group])
    return Answers(values={name: tuple(found) for name, found in values.items()}, groups=tuple(groups.values()))


def _protocol(task: TaskFiles, order: WorkOrder) -> TaskProtocol:
    return TaskProtocol(
        task=task.settings.name,
        definition_sha256=task_files.definition_sha256(task.settings.name),
        data_sha256=sha256_file(task.rows),
        fewshot_sha256=sha256_file(task.fewshot) if task.fewshot else None,
        num_fewshot=task.settings.num_fewshot,
        limit=task.settings.limit,
        harness=f"lm_eval {importlib.metadata.version('lm_eval')}",
        dtype=order.dtype,
    )


def _base_answers(
    order: WorkOrder, identity: str, protocols: dict[TaskName, TaskProtocol]
) -> dict[TaskName, Answers] | None:
    """Those of an earlier run of this very job, where it asked for the same tasks."""
    try:
        saved = _SavedAnswers.model_validate_json((order.work_dir / _BASE_ANSWERS).read_bytes())
    except (OSError, ValueError):
        # Absent, or cut off while it was written: asking again is all it costs.
        return None
    hashes = {name: content_hash(protocol.model_dump(mode="json")) for name, protocol in protocols.items()}
    if saved.identity != identity or not set(hashes.values()) <= set(saved.answers):
        return None
    return {name: saved.answers[found] for name, found in hashes.items()}


def _result(
    task: TaskFiles,
    protocol: TaskProtocol,
    base: dict[TaskName, Answers] | None,
    artifact: dict[TaskName, Answers],
    runtime: str,
    seconds: float,
) -> TaskResult:
    name = task.settings.name
    definition = TASKS[name]
    mine, other = artifact[name], base[name] if base else None
    metrics = task_files.metrics(name)
    names = sorted(mine.values, key=lambda found: found != definition.metric)
    main = definition.metric
    flipped = paired.flipped(_array(other, main), _array(mine, main)) if other else None
    assert task.settings.address is not None
    return TaskResult(
        name=name,
        source=task.settings.address,
        protocol=protocol,
        protocol_hash=content_hash(protocol.model_dump(mode="json")),
        rows=len(mine.values[main]),
        metrics=tuple(_metric(found, metrics[found.partition(",")[0]], other, mine) for found in names),
        flipped=flipped,
        groups=tuple(_groups(main, other, mine)),
        runtime=runtime,
        seconds=seconds,
    )


def _metric(name: str, kind: task_files.Metric, base: Answers | None, artifact: Answers) -> TaskMetric:
    values_D = _array(artifact, name)
    alone = {
        "name": name,
        "higher_is_better": kind.higher_is_better,
        "artifact": paired.aggregated(values_D, kind.aggregation),
        "artifact_stderr": paired.standard_error(values_D, kind.aggregation),
    }
    if base is None:
        return TaskMetric(**alone)
    base_D = _array(base, name)
    difference = paired.difference(base_D, values_D, kind.aggregation)
    return TaskMetric(
        **alone,
        base=paired.aggregated(base_D, kind.aggregation),
        base_stderr=paired.standard_error(base_D, kind.aggregation),
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        verdict=difference.verdict(higher_is_better=kind.higher_is_better),
    )


def _groups(main: str, base: Answers | None, artifact: Answers) -> Iterator[TaskGroup]:
    """The main metric is a mean in every task that has groups."""
    for name in sorted(set(artifact.groups)):
        rows = [index for index, found in enumerate(artifact.groups) if found == name]
        yield TaskGroup(
            name=name,
            rows=len(rows),
            base=float(_array(base, main)[rows].mean()) if base else None,
            artifact=float(_array(artifact, main)[rows].mean()),
        )


def _array(answers: Answers, metric: str) -> paired.Values:
    return numpy.asarray(answers.values[metric], dtype=numpy.float64)


def _lines(path: Path) -> int:
    with path.open("rb") as rows:
        return sum(1 for _ in rows)
