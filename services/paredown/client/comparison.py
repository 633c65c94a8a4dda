"""Two to six artifacts side by side: what differs between their recipes and settings, and their figures.

A figure that was measured in two ways is never one line: of two protocols each has its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from paredown.contracts.artifact import ArtifactView, Manifest
from paredown.contracts.recipes import Stage
from paredown.contracts.report import Divergence, Report, Speed, TaskMetric
from paredown.contracts.tasks import TASKS

MOST_COMPARED = 6

Unit = Literal[
    "text", "number", "perplexity", "divergence", "change", "share", "bytes", "tokens/s", "seconds", "joules"
]
Value = str | float | None


@dataclass(frozen=True)
class Line:
    """A row of the comparison; one value for each artifact, None where there is none."""

    name: str
    unit: Unit
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Figure:
    name: str
    unit: Unit
    read: Callable[[Report], Value]


def _speed(read: Callable[[Speed], Value]) -> Callable[[Report], Value]:
    return lambda report: read(report.speeds["artifact"]) if "artifact" in report.speeds else None


def _divergence(read: Callable[[Divergence], Value]) -> Callable[[Report], Value]:
    return lambda report: read(report.divergence) if report.divergence else None


# To compare another figure, add its line: to these where it is measured under the evaluation's protocol.
QUALITY = (
    Figure("Perplexity", "perplexity", lambda report: report.artifact.perplexity if report.artifact else None),
    Figure("Rise in perplexity", "change", lambda report: report.perplexity_increase),
    Figure("Mean divergence", "divergence", _divergence(lambda divergence: divergence.mean)),
    Figure("99th percentile of the divergence", "divergence", _divergence(lambda divergence: divergence.p99)),
    Figure("Same answer as the base", "share", _divergence(lambda divergence: divergence.top1_agreement)),
    Figure("Answers lost", "share", _divergence(lambda divergence: divergence.answers_lost)),
)
FIGURES = (
    Figure("Size", "bytes", lambda report: report.size_bytes),
    Figure("Size, share of the base", "share", lambda report: report.size_ratio),
    Figure("Bits for each weight", "number", lambda report: report.average_bits),
    Figure("Zeros", "share", lambda report: report.sparsity),
    Figure(
        "Speed measured in", "text", _speed(lambda speed: f"{speed.runtime}, {speed.device}, {speed.threads} threads")
    ),
    Figure("Decode speed", "tokens/s", _speed(lambda speed: speed.decode_tokens_per_second)),
    Figure(
        "Decode speed, 8 sequences",
        "tokens/s",
        _speed(lambda speed: speed.batch.decode_tokens_per_second if speed.batch else None),
    ),
    Figure("Prefill speed", "tokens/s", _speed(lambda speed: speed.prefill_tokens_per_second)),
    Figure("Time to first token", "seconds", _speed(lambda speed: speed.time_to_first_token_seconds)),
    Figure(
        "Energy of a token", "joules", _speed(lambda speed: speed.energy.joules_per_token if speed.energy else None)
    ),
    Figure(
        "Energy of a token, 8 sequences",
        "joules",
        _speed(lambda speed: speed.energy.batch_joules_per_token if speed.energy else None),
    ),
    Figure("Load", "seconds", _speed(lambda speed: speed.load_seconds)),
    Figure("Peak memory in the runtime", "bytes", _speed(lambda speed: speed.peak_memory_bytes)),
    Figure(
        "Runtimes that loaded it",
        "text",
        lambda report: ", ".join(proof.runtime for proof in report.runtimes if proof.loads) or None,
    ),
    Figure("Budget", "text", lambda report: report.gate.verdict.value if report.gate else None),
    Figure("The job took", "seconds", lambda report: report.cost.job_seconds if report.cost else None),
)


@dataclass(frozen=True)
class TaskLine:
    """The main metric of one task under one protocol; one value for each artifact, None where it has none."""

    name: str
    metric: str
    rows: int
    protocol_hash: str
    values: tuple[TaskMetric | None, ...]


def labels(views: Sequence[ArtifactView]) -> list[str]:
    """Their names; with the begin of the id where two are called the same."""
    names = [view.name for view in views]
    return [f"{view.name} ({str(view.id)[:8]})" if names.count(view.name) > 1 else view.name for view in views]


def settings(manifests: Sequence[Manifest]) -> list[Line]:
    """What was set differently, in the order in which it stands in the manifests."""
    flat = [dict(_settings(manifest)) for manifest in manifests]
    names = list(dict.fromkeys(chain.from_iterable(flat)))
    lines = [Line(name, "text", tuple(one.get(name) for one in flat)) for name in names]
    return [line for line in lines if len(set(line.values)) > 1]


def figures(manifests: Sequence[Manifest]) -> list[Line]:
    """What was measured of each; a figure that none of them has is left out."""
    read = [
        Line(figure.name, figure.unit, tuple(figure.read(manifest.report) for manifest in manifests))
        for figure in FIGURES
    ]
    return [line for line in (*_quality(manifests), *read) if any(value is not None for value in line.values)]


def tasks(manifests: Sequence[Manifest]) -> list[TaskLine]:
    """A line for each protocol of each task: figures of other rows, examples or harnesses do not compare."""
    measured = [{result.protocol_hash: result for result in manifest.report.tasks} for manifest in manifests]
    protocols = {hashed: result for found in measured for hashed, result in found.items()}
    titles = Counter(result.name for result in protocols.values())
    lines = []
    for hashed, result in sorted(protocols.items(), key=lambda item: list(TASKS).index(item[1].name)):
        shots = f", {result.protocol.num_fewshot} examples" if result.protocol.num_fewshot else ""
        told_apart = f" ({result.rows} rows{shots}, {result.protocol.dtype}, {hashed[:8]})"
        found = [results[hashed].main if hashed in results else None for results in measured]
        name = result.title + (told_apart if titles[result.name] > 1 else "")
        lines.append(TaskLine(name, result.main.name, result.rows, hashed, tuple(found)))
    return lines


def _quality(manifests: Sequence[Manifest]) -> Iterable[Line]:
    """Lines for each protocol, so that no two figures stand beside each other that cannot be compared."""
    found = [manifest.report.artifact for manifest in manifests]
    protocols = {evaluation.protocol_hash: evaluation.protocol for evaluation in found if evaluation}
    for hashed, protocol in protocols.items():
        under = [
            manifest.report if one and one.protocol_hash == hashed else None
            for manifest, one in zip(manifests, found, strict=True)
        ]
        source = protocol.source.removeprefix("builtin://")
        measured = f" ({source}, {protocol.samples} × {protocol.sequence_length}, {protocol.dtype}, {hashed[:8]})"
        for figure in QUALITY:
            values = tuple(figure.read(report) if report else None for report in under)
            yield Line(figure.name + (measured if len(protocols) > 1 else ""), figure.unit, values)


def _settings(manifest: Manifest) -> Iterable[tuple[str, str]]:
    yield "model", manifest.base.uri
    yield "revision", manifest.base.revision
    stages: list[Stage] = list(chain.from_iterable(manifest.recipes))
    for number, stage in enumerate(stages, 1):
        yield from _flat(f"stage {number}", stage.model_dump(mode="json"))
    yield "format", manifest.format.value
    yield "number type", manifest.dtype
    for part in ("calibration", "evaluation"):
        value = getattr(manifest, part)
        yield from _flat(part, value.model_dump(mode="json") if value else None)
    yield "calibration tokens", str(manifest.calibration_tokens_sha256)[:12]


def _flat(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name} · {key.replace('_', ' ')}", inner)
    elif isinstance(value, list):
        yield from _flat_list(name, value)
    elif isinstance(value, bool):
        yield name, "yes" if value else "no"
    elif value is not None:
        yield name, str(value)


def _flat_list(name: str, items: list[Any]) -> Iterable[tuple[str, str]]:
    """Tasks and domains by their names, so that one that only some have is a line; plain values are one line."""
    if all(isinstance(item, dict) and "name" in item for item in items):
        for item in items:
            inner = {key: value for key, value in item.items() if key != "name"}
            yield f"{name} · {item['name']}", "yes"
            yield from _flat(f"{name} · {item['name']}", inner)
    else:
        yield name, ", ".join(map(str, items))
