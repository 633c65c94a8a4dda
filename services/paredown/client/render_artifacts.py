"""Tables for people: artifacts, their reports, and artifacts beside each other."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from paredown.client import render, wording
from paredown.client.comparison import Line, TaskLine, Value
from paredown.contracts.alias import AliasDetails, AliasView
from paredown.contracts.artifact import ArtifactView, Front, FrontPoint, Manifest
from paredown.contracts.calibration import CalibrationView
from paredown.contracts.gate import TERMS
from paredown.contracts.prices import Savings, Serving
from paredown.contracts.report import Check, DomainResult, Energy, RefusalResult, Report, TaskMetric, TaskResult

# Columns from which a table holds an id of 36 characters beside its figures.
_WIDE = 140
# Of a report's exemplars a terminal shows the first, each with the end of its context.
_EXEMPLARS = 5
_CONTEXT_CHARACTERS = 60


def artifacts(items: Iterable[ArtifactView]) -> RenderableType:
    table = render.make_table(
        "id",
        "name",
        "recipe",
        "perplexity",
        "size",
        "ratio",
        "verdict",
        "aliases",
        "tags",
        right=("perplexity", "size", "ratio"),
    )
    for item in items:
        table.add_row(
            str(item.id),
            item.name,
            item.recipe_name,
            wording.figure(item.perplexity),
            wording.size(item.size_bytes),
            f"{item.size_ratio:.1%}",
            render.verdict(item.verdict),
            " ".join(item.aliases),
            " ".join(item.tags),
        )
    return table


def aliases(items: Iterable[AliasView]) -> RenderableType:
    table = render.make_table("alias", "artifact", "name", "verdict", "protected", "moved")
    for item in items:
        table.add_row(
            item.name,
            str(item.artifact_id),
            item.artifact_name,
            render.verdict(item.verdict),
            "yes" if item.protected else "no",
            item.moved_at.isoformat(timespec="seconds"),
        )
    return table


def alias(view: AliasDetails) -> RenderableType:
    """Where it points, and below that where it pointed before."""
    facts = render.make_facts(
        [
            ("alias", view.name),
            ("artifact", f"{view.artifact_id} ({view.artifact_name})"),
            ("verdict", render.verdict(view.verdict)),
            ("protected", "yes" if view.protected else "no"),
        ]
    )
    table = render.make_table("moved", "from", "to", "protected", "key", "reason")
    for move in view.moves:
        table.add_row(
            move.at.isoformat(timespec="seconds"),
            str(move.from_id or wording.NOTHING),
            str(move.to_id or wording.NOTHING),
            "yes" if move.protected else "no",
            move.key_name,
            move.reason or "",
        )
    return Group(facts, Text(), table)


def artifact(view: ArtifactView, measured: Report) -> RenderableType:
    override = view.override
    increase = view.perplexity / view.base_perplexity - 1 if view.perplexity and view.base_perplexity else None
    quality = None if view.perplexity is None else f"{view.perplexity:.3f}"
    if increase is not None:
        quality = f"{quality} ({increase:+.1%} over {view.base_perplexity:.3f})"
    speed = view.decode_tokens_per_second
    facts = render.make_facts(
        [
            ("artifact", view.id),
            ("name", view.name),
            ("model", view.model),
            ("made of", "\n".join(f"artifact://{ancestor.artifact_id}" for ancestor in reversed(view.lineage))),
            ("recipe", view.recipe_name),
            ("format", view.format),
            ("size", f"{wording.size(view.size_bytes)} ({view.size_ratio:.1%} of the base)"),
            ("perplexity", quality),
            ("decode", None if speed is None else f"{speed:.1f} tokens/s"),
            ("cost", wording.money(view.cost_per_million_tokens, view.currency) + " for a million tokens"),
            ("verdict", render.verdict(view.verdict)),
            (
                "overridden",
                f"by {override.key_name}, {override.at.isoformat(timespec='seconds')}: {override.reason}"
                if override
                else None,
            ),
            ("visibility", view.visibility),
            ("aliases", " ".join(view.aliases)),
            ("tags", " ".join(view.tags)),
            ("job", view.job_id),
            ("created", view.created_at.isoformat(timespec="seconds")),
        ]
    )
    return Group(facts, *_evidence(measured))


def report(manifest: Manifest) -> RenderableType:
    """Base beside artifact, as the manifest of one run has them."""
    view = manifest.report
    table = render.make_table("", "perplexity", "Δ", "size", "ratio", "bits", "sparsity", right=())
    table.add_row(
        "base",
        wording.figure(view.base.perplexity if view.base else None, ".3f"),
        "",
        wording.size(view.base_bytes),
        "100.0%",
        "16.00",
        "0.0%",
    )
    table.add_row(
        "artifact",
        wording.figure(view.artifact.perplexity if view.artifact else None, ".3f"),
        wording.figure(view.perplexity_increase, "+.1%"),
        wording.size(view.size_bytes),
        f"{view.size_ratio:.1%}",
        f"{view.average_bits:.2f}",
        f"{view.sparsity:.1%}",
    )
    stages = (Text(f"{stage.method}: {stage.summary}") for stage in view.stages)
    return Group(table, *stages, *_evidence(view))


def speeds(view: Report) -> list[RenderableType]:
    """What each runtime measured of base and artifact; nothing where none did."""
    measured = [view.speeds, *(proof.speeds for proof in view.runtimes)]
    rows = [row for speeds in measured for row in sorted(speeds.items(), reverse=True)]
    if not rows:
        return []
    counted = [speed.energy for _, speed in rows if speed.energy]
    right = ["first token", "decode tok/s", "spread", "8 at once", "load", "memory"]
    right += ["J/token", "J/token, 8 at once"] if counted else []
    table = render.make_table("speed", *right, "runtime", right=right)
    for role, speed in rows:
        spread, batch = speed.decode_spread, speed.batch
        table.add_row(
            role,
            wording.milliseconds(speed.time_to_first_token_seconds),
            wording.figure(speed.decode_tokens_per_second, ".1f"),
            f"{spread.low:.1f}–{spread.high:.1f}" if spread else wording.NOTHING,
            wording.figure(batch.decode_tokens_per_second if batch else None, ".1f"),
            f"{speed.load_seconds:.1f} s",
            wording.size(speed.peak_memory_bytes),
            *(_joules(speed.energy) if counted else ()),
            f"{speed.runtime}, {speed.device}, {speed.threads} threads",
        )
    told = [Text(f"Energy is of {counted[0].covers}, with whatever else ran there.", style="dim")] if counted else []
    return [Text(), table, *told]


def _joules(energy: Energy | None) -> tuple[str, str]:
    if energy is None:
        return wording.NOTHING, wording.NOTHING
    return wording.figure(energy.joules_per_token, ".3g"), wording.figure(energy.batch_joules_per_token, ".3g")


def proofs(view: Report) -> list[RenderableType]:
    """The smoke matrix: what each runtime did with the artifact."""
    if not view.runtimes:
        return []
    right = ("perplexity", "decode tok/s")
    table = render.make_table(
        "runtime", "version", "loads", "generates", *right[:1], "agrees", *right[1:], "remark", right=right
    )
    for proof in view.runtimes:
        decode = {role: f"{speed.decode_tokens_per_second:.1f}" for role, speed in view.speeds_in(proof).items()}
        table.add_row(
            proof.runtime,
            proof.version or wording.NOTHING,
            _mark(proof.loads if proof.version else None),
            _mark(proof.generates),
            wording.figure(proof.perplexity, ".3f"),
            _mark(proof.agrees),
            f"{decode['artifact']} (base {decode.get('base', wording.NOTHING)})" if decode else wording.NOTHING,
            proof.detail or "",
        )
    return [Text(), table]


def _mark(value: bool | None) -> Text:
    return (
        Text(wording.NOTHING) if value is None else Text("yes", style="green") if value else Text("no", style="yellow")
    )


def _evidence(view: Report) -> list[RenderableType]:
    """What lies behind perplexity, size and speed, and what the gate said of it."""
    notes = (Text(f"Note: {warning}", style="yellow") for warning in view.warnings)
    left_out = view.held_out_windows
    apart = [] if left_out is None else [Text(f"held out of calibration: {left_out} windows of its text")]
    behind = [*apart, *_divergence(view), *_generations(view), *_measured(view), *speeds(view), *proofs(view)]
    return [*behind, *_checks(view), *notes]


def _divergence(view: Report) -> list[RenderableType]:
    found = view.divergence
    if found is None:
        return []
    passages = render.make_table("KL", "text goes on with", "base", "artifact", "after", right=("KL",))
    for exemplar in found.exemplars[:_EXEMPLARS]:
        passages.add_row(
            f"{exemplar.divergence:.2f}",
            repr(exemplar.token),
            f"{exemplar.base.token!r} {exemplar.base.probability:.0%}",
            f"{exemplar.artifact.token!r} {exemplar.artifact.probability:.0%}",
            f"…{' '.join(exemplar.context.split())[-_CONTEXT_CHARACTERS:]}",
        )
    return [
        Text(
            f"divergence (KL from the base, nats): mean {found.mean:.4f}, median {found.median:.4f}, "
            f"90 % {found.p90:.4f}, 99 % {found.p99:.4f}, largest {found.maximum:.2f}"
        ),
        Text(
            f"answers: the same as the base's {found.top1_agreement:.1%}, right ones lost {found.answers_lost:.1%}, "
            f"wrong ones mended {found.answers_won:.1%}"
        ),
        Text("what changed most:", style="bold"),
        passages,
    ]


def _generations(view: Report) -> list[RenderableType]:
    if not view.generations:
        return []
    figures = ", ".join(f"{role} {written.repetition:.1%}" for role, written in view.generations.items())
    return [Text(f"repeats itself (seq-rep-4): {figures}")]


_TASK_STYLES = {"better": "green", "same": "dim", "worse": "yellow"}


def tasks(results: Iterable[TaskResult]) -> RenderableType:
    """Each task's main metric, and the difference in points of a hundred with its 95 % interval."""
    right = ("rows", "base", "artifact", "points", "flipped")
    table = render.make_table("task", "metric", *right, "verdict", right=right)
    for result in results:
        metric = result.main
        table.add_row(
            result.title,
            metric.name,
            str(result.rows),
            wording.figure(metric.base, ".2%"),
            f"{metric.artifact:.2%} ± {metric.artifact_stderr:.2%}",
            _points(metric),
            wording.figure(result.flipped, ".1%"),
            Text(wording.NOTHING)
            if metric.verdict is None
            else Text(metric.verdict, style=_TASK_STYLES[metric.verdict]),
        )
    return table


def _points(metric: TaskMetric) -> str:
    if metric.difference is None or metric.low is None or metric.high is None:
        return wording.NOTHING
    return f"{100 * metric.difference:+.2f} [{100 * metric.low:+.2f}, {100 * metric.high:+.2f}]"


def domains(results: Iterable[DomainResult]) -> RenderableType:
    """Token perplexity of each text; texts differ, so only the rises compare."""
    table = render.make_table("domain", "base", "artifact", "Δ", right=("base", "artifact", "Δ"))
    for result in results:
        base = wording.figure(result.base.perplexity if result.base else None, ".3f")
        table.add_row(
            result.name,
            base,
            wording.figure(result.artifact.perplexity, ".3f"),
            wording.figure(result.increase, "+.1%"),
        )
    return table


def refusal(result: RefusalResult) -> RenderableType:
    """Shares of the prompts that were refused."""
    table = render.make_table("prompts", "asked", "base refuses", "artifact refuses", right=("asked",))
    for share in result.shares:
        table.add_row(
            share.kind, str(share.prompts), wording.figure(share.base, ".0%"), wording.figure(share.artifact, ".0%")
        )
    return table


def _measured(view: Report) -> list[RenderableType]:
    """What a report has beside perplexity, size and speed."""
    tables = [tasks(view.tasks)] if view.tasks else []
    tables += [domains(view.domains)] if view.domains else []
    tables += [refusal(view.refusal)] if view.refusal else []
    return [part for table in tables for part in (Text(), table)]


def _checks(view: Report) -> list[RenderableType]:
    if view.gate is None:
        return []
    return [
        Text(
            f"{check.figure.replace('_', ' ')} {_limited(check, check.value, view)}, at {check.bound} "
            f"{_limited(check, check.limit, view)}: " + ("met" if check.passed else "missed"),
            style="green" if check.passed else "yellow",
        )
        for check in view.gate.checks
    ]


def _limited(check: Check, value: float | None, view: Report) -> str:
    """A figure that a budget limits, as its unit is written."""
    if value is None:
        return "not measured"
    match TERMS[check.figure].unit:
        case "bytes":
            return wording.size(value)
        case "money":
            return wording.money(value, view.cost.currency if view.cost else None)
        case "nats":
            return f"{value:.4g} nats"
        case "times":
            return f"{value:.2f} ×"
    return f"{value:.1%}"


def front(view: Front, width: int = 160) -> RenderableType:
    """The trade-off table: the base first, then its artifacts from large to small; ids below where it is narrow."""
    base = next((point for point in view.points if point.artifact_id is None), None)
    right = ("perplexity", "Δ", "size", "ratio", "decode\ntok/s", "first\ntoken", "memory", "cost per\nM tokens")
    is_wide = width >= _WIDE
    table = render.make_table("name", *right, "verdict", "front", *(["artifact"] if is_wide else []), right=right)
    ordered = sorted(view.points, key=lambda point: (point.artifact_id is not None, -point.size_bytes, point.name))
    for point in ordered:
        table.add_row(
            *_front_row(point, base, view.currency), *([str(point.artifact_id or wording.NOTHING)] if is_wide else [])
        )
    if is_wide:
        return table
    ids = [(str(point.artifact_id), point.name) for point in ordered if point.artifact_id]
    return Group(table, Text(), render.make_facts(ids))


def _front_row(point: FrontPoint, base: FrontPoint | None, currency: str | None) -> list[str | Text]:
    increase = f"{point.perplexity / base.perplexity - 1:+.1%}" if base and point is not base else ""
    return [
        point.name,
        f"{point.perplexity:.3f}",
        increase,
        wording.size(point.size_bytes),
        f"{point.size_bytes / base.size_bytes:.1%}" if base else wording.NOTHING,
        wording.figure(point.decode_tokens_per_second, ".1f"),
        wording.milliseconds(point.time_to_first_token_seconds),
        wording.NOTHING if point.peak_memory_bytes is None else wording.size(point.peak_memory_bytes),
        wording.money(point.cost_per_million_tokens, currency),
        render.verdict(point.verdict),
        Text("●", style="green") if point.on_front else Text("·", style="dim"),
    ]


def comparison(
    names: Sequence[str], settings: Sequence[Line], figures: Sequence[Line], tasks: Sequence[TaskLine]
) -> RenderableType:
    """A column for each artifact; first what was done differently, then what was measured, then the tasks."""
    table = render.make_table("", *names)
    for line in settings:
        table.add_row(line.name, *(wording.NOTHING if value is None else str(value) for value in line.values))
    table.add_section()
    table.add_row()
    for line in figures:
        table.add_row(line.name, *(_compared(line, value) for value in line.values))
    if tasks:
        table.add_section()
        table.add_row()
        for task in tasks:
            table.add_row(f"{task.name}, {task.metric}", *map(_task_value, task.values))
    return table


def _task_value(metric: TaskMetric | None) -> Text:
    """The figure; below it the difference from the base in points, with its 95 % interval and what that says."""
    if metric is None:
        return Text(wording.NOTHING)
    lines = Text(f"{metric.artifact:.2%}")
    if metric.difference is not None:
        lines.append(f"\n{_points(metric)}")
    if metric.verdict is not None:
        lines.append(f" {metric.verdict}", style=_TASK_STYLES[metric.verdict])
    return lines


def _compared(line: Line, value: Value) -> str:
    if value is None or isinstance(value, str):
        return wording.NOTHING if value is None else value
    match line.unit:
        case "bytes":
            return wording.size(value)
        case "share":
            return f"{value:.1%}"
        case "change":
            return f"{value:+.1%}"
        case "perplexity":
            return f"{value:.3f}"
        case "divergence":
            return f"{value:.4f}"
        case "tokens/s":
            return f"{value:.1f} tokens/s"
        case "seconds":
            return wording.milliseconds(value) if value < 1 else f"{value:.1f} s"
        case "joules":
            return f"{value:.3g} J"
    return f"{value:.2f}"


def savings(view: Savings, served: Mapping[str, Serving | None]) -> RenderableType:
    """A month of the base beside a month of the artifact."""
    table = render.make_table(
        "", "smallest instance", "a million tokens", "a month", right=("a million tokens", "a month")
    )
    for role, cost in (("base", view.base_cost), ("artifact", view.artifact_cost)):
        serving = served[role]
        table.add_row(
            role,
            serving.instance.name if serving else wording.NOTHING,
            wording.money(serving.per_million_tokens if serving else None, view.currency),
            wording.money(cost, view.currency),
        )
    facts = render.make_facts(
        [
            ("traffic", f"{wording.count(view.tokens)} tokens and {wording.count(view.loads)} loads a month"),
            ("bytes saved", f"{'-' if view.bytes_saved < 0 else ''}{wording.size(abs(view.bytes_saved))}"),
            ("money saved", wording.money(view.saved, view.currency)),
        ]
    )
    return Group(table, Text(), facts)


def calibrations(items: Iterable[CalibrationView]) -> RenderableType:
    right = ("sequences", "seed")
    table = render.make_table("id", "source", *right, "model", "created", right=right)
    for item in items:
        drawn = f"{item.samples} × {item.sequence_length}"
        table.add_row(str(item.id), item.source, drawn, str(item.seed), item.model, wording.age(item.created_at))
    return table


def calibration(view: CalibrationView) -> RenderableType:
    experts = [tokens for block in view.coverage.values() for tokens in block]
    reached = f"{len(experts)} experts, of which the least reached saw {min(experts)} tokens" if experts else ""
    return render.make_facts(
        [
            ("use it as", view.uri),
            ("source", view.source),
            ("sequences", f"{view.samples} × {view.sequence_length}, seed {view.seed}"),
            ("held out", "" if view.held_out_windows is None else f"{view.held_out_windows} windows left out"),
            ("tokens", view.tokens_sha256),
            ("text", view.source_sha256),
            ("tokenizer", view.tokenizer_sha256),
            ("chat template", view.chat_template_sha256 or "none applied"),
            ("coverage", reached),
            ("model", f"{view.model} ({view.model_type}, {view.vocab_size} tokens in its vocabulary)"),
            ("size", wording.size(view.size_bytes)),
            ("job", view.job_id),
            ("created", view.created_at.isoformat(timespec="seconds")),
        ]
    )
