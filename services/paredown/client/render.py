"""Tables and figures for people."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paredown.client.comparison import Line, TaskLine, Value
from paredown.contracts.access import KeyView
from paredown.contracts.alias import AliasDetails, AliasView
from paredown.contracts.artifact import (
    ArtifactView,
    Check,
    DomainResult,
    Energy,
    Front,
    FrontPoint,
    Manifest,
    RefusalResult,
    Report,
    TaskMetric,
    TaskResult,
    Verdict,
)
from paredown.contracts.calibration import CalibrationView
from paredown.contracts.dataset import DatasetView
from paredown.contracts.gate import TERMS
from paredown.contracts.job import Canary, Interval, JobState, JobView, Plan, PlanOutcomes, Progress
from paredown.contracts.methods import MethodView
from paredown.contracts.prices import PriceBook, Savings, Serving
from paredown.contracts.search import Rung, SearchDetails, SearchState, SearchView
from paredown.contracts.sweep import (
    FigureSpread,
    SpreadFigure,
    SweepDetails,
    SweepMember,
    SweepPlan,
    SweepState,
    SweepView,
)

STATE_STYLES = {
    JobState.QUEUED: "dim",
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.REJECTED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "dim",
}
_SWEEP_STYLES = {
    SweepState.QUEUED: "dim",
    SweepState.RUNNING: "cyan",
    SweepState.FINISHED: "green",
    SweepState.CANCELLED: "dim",
}
_SEARCH_STYLES = {
    SearchState.EXPLORING: "cyan",
    SearchState.CONFIRMING: "cyan",
    SearchState.FINISHED: "green",
    SearchState.CANCELLED: "dim",
}
_VERDICT_STYLES = {Verdict.PASSED: "green", Verdict.MISSED: "yellow", Verdict.OVERRIDDEN: "magenta"}
NOTHING = "–"
# Columns from which a table holds an id of 36 characters beside its figures.
_WIDE = 140
# Of a report's exemplars a terminal shows the first, each with the end of its context.
_EXEMPLARS = 5
_CONTEXT_CHARACTERS = 60


def size(size_bytes: float) -> str:
    """Decimal units, as disks and networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} TB"


def count(number: float) -> str:
    for unit in ("", " k", " M", " B"):
        if number < 1000:
            return f"{number:.0f}{unit}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def milliseconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{1000 * seconds:.0f} ms"


def money(amount: float | None, currency: str | None) -> str:
    return NOTHING if amount is None else f"{amount:.2g} {currency or ''}".rstrip()


def figure(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def age(moment: datetime) -> str:
    return f"{duration((datetime.now(UTC) - moment).total_seconds())} ago"


def step(progress: Progress | None) -> str:
    """`compress, block 7 of 30`"""
    if progress is None:
        return ""
    block = f", block {progress.block} of {progress.num_blocks}" if progress.num_blocks and progress.block else ""
    return f"{progress.phase}{block}"


def canary(found: Canary) -> str:
    """`Canary: 1 of 30 blocks took 1.2 s and 996.1 MB; expected to end in 2 min 40 s (planned 3 min 00 s)`"""
    line = f"Canary: 1 of {found.num_blocks} blocks took {brief(found.block_seconds)}"
    line += f" and {size(found.rehearsal_memory_bytes)}"
    if found.rehearsal_device_memory_bytes is not None:
        line += f" ({size(found.rehearsal_device_memory_bytes)} on the GPU)"
    if found.refusal is not None:
        return f"{line}. {found.refusal}"
    ends = found.seconds
    return f"{line}; expected to end in {duration(ends.expected)} (planned {duration(ends.planned)})"


def brief(seconds: float) -> str:
    """With tenths below ten seconds, which `duration` rounds away."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", no_wrap=column in ("id", "job", "artifact", *right)
        )
    return table


def _facts(pairs: Iterable[tuple[str, object]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, ""):
            table.add_row(name, value if isinstance(value, Text) else str(value))
    return table


def state(job: JobView) -> Text:
    label = f"{job.state} (cancelling)" if job.cancel_requested and not job.state.terminal else str(job.state)
    return Text(label, style=STATE_STYLES[job.state])


def verdict(value: Verdict | None) -> Text:
    return Text(NOTHING) if value is None else Text(str(value), style=_VERDICT_STYLES[value])


def jobs(items: Iterable[JobView]) -> RenderableType:
    table = _table("id", "state", "recipe", "model", "pool", "progress", "created")
    for job in items:
        if job.error:
            progress = job.error.code
        elif job.progress and not job.state.terminal:
            progress = f"{job.progress.fraction:.0%} {step(job.progress)}"
        else:
            progress = ""
        table.add_row(str(job.id), state(job), job.recipe_name, job.spec.model, job.pool, progress, age(job.created_at))
    return table


def job(view: JobView) -> RenderableType:
    took = (view.finished_at - view.started_at).total_seconds() if view.finished_at and view.started_at else None
    error = f"{view.error.detail} ({view.error.code})" if view.error else None
    if view.error and view.error.field:
        error = f"{error}, field {view.error.field}"
    return _facts(
        [
            ("job", view.id),
            ("state", state(view)),
            ("error", error),
            ("recipe", view.recipe_name),
            ("model", view.spec.model),
            ("pool", view.pool),
            ("canary", canary(view.canary).removeprefix("Canary: ") if view.canary else ""),
            ("progress", "" if view.state.terminal else step(view.progress)),
            ("failures", view.failures or ""),
            ("created", view.created_at.isoformat(timespec="seconds")),
            ("run time", duration(took) if took is not None else ""),
            ("artifact", view.artifact_id),
        ]
    )


def sweeps(items: Iterable[SweepView]) -> RenderableType:
    table = _table("id", "state", "name", "model", "progress", "recipes", "created", right=("progress",))
    for item in items:
        name = item.name or NOTHING
        progress, made = f"{item.progress:.0%}", sweep_counts(item)
        table.add_row(str(item.id), sweep_state(item), name, item.model, progress, made, age(item.created_at))
    return table


def sweep_state(view: SweepView) -> Text:
    cancelling = view.cancel_requested and not view.state.terminal
    return Text(f"{view.state} (cancelling)" if cancelling else str(view.state), style=_SWEEP_STYLES[view.state])


def sweep_counts(view: SweepView) -> str:
    """`12: 3 succeeded (1 reused), 9 queued`"""
    parts = [f"{view.counts[state]} {state}" for state in JobState if view.counts.get(state)]
    reused = f", {view.reused} of them reused" if view.reused else ""
    return f"{view.recipes}: {', '.join(parts)}{reused}"


def sweep(view: SweepDetails) -> RenderableType:
    """Its facts, a line for each recipe, and those on the front marked."""
    facts = _facts(
        [
            ("sweep", view.id),
            ("name", view.name),
            ("state", sweep_state(view)),
            ("model", view.model),
            ("calibrations" if view.spec.calibrations else "recipes", sweep_counts(view)),
            *([("recipe", view.members[0].recipe_name)] if view.spec.calibrations else []),
            ("progress", "" if view.state.terminal else f"{view.progress:.0%}"),
            ("created", view.created_at.isoformat(timespec="seconds")),
        ]
    )
    unbeaten = {point.artifact_id for point in view.front.points if point.on_front} if view.front else set()
    if view.spec.calibrations:
        return Group(facts, Text(), _calibrated(view), *([Text(), _spread(view.spread)] if view.spread else []))
    right = ("perplexity", "Δ", "size", "ratio")
    table = _table("recipe", "state", *right, "verdict", "front", "job or artifact", right=right)
    for member in view.members:
        table.add_row(
            member.label,
            _member_state(member),
            figure(member.perplexity, ".3f"),
            figure(member.perplexity_increase, "+.1%"),
            NOTHING if member.size_bytes is None else size(member.size_bytes),
            figure(member.size_ratio, ".1%"),
            verdict(member.verdict),
            Text("●", style="green") if member.artifact_id in unbeaten and member.artifact_id else Text(""),
            str(member.artifact_id or member.job_id or NOTHING),
        )
    return Group(facts, Text(), table)


def _member_state(member: SweepMember) -> Text:
    state_text = "reused" if member.reused else member.error.code if member.error else str(member.state)
    if member.state is JobState.RUNNING:
        state_text = f"running {member.progress:.0%}"
    return Text(state_text, style=STATE_STYLES[member.state])


# Figures of a sweep over calibrations: their headings, and how each is written.
_SPREAD_FIGURES: dict[SpreadFigure, tuple[str, str]] = {
    "perplexity": ("perplexity", ".4f"),
    "perplexity_increase": ("Δ", "+.2%"),
    "mean_divergence": ("mean KL", ".5f"),
    "top1_agreement": ("top-1", ".2%"),
}


def _calibrated(view: SweepDetails) -> RenderableType:
    """A line for each calibration."""
    headings = [heading for heading, _ in _SPREAD_FIGURES.values()]
    table = _table("calibration", "state", *headings, "verdict", "job or artifact", right=headings)
    for member in view.members:
        figures = [figure(getattr(member, name), style) for name, (_, style) in _SPREAD_FIGURES.items()]
        made = str(member.artifact_id or member.job_id or NOTHING)
        table.add_row(member.label, _member_state(member), *figures, verdict(member.verdict), made)
    return table


def _spread(spreads: Iterable[FigureSpread]) -> RenderableType:
    """A line for each figure: how far it lies apart over the calibrations."""
    right = ("minimum", "median", "maximum", "max − min")
    table = _table("figure", *right, "of", right=right)
    for spread in spreads:
        heading, style = _SPREAD_FIGURES[spread.figure]
        values = (spread.minimum, spread.median, spread.maximum)
        wide = figure(spread.range, style.removeprefix("+"))
        table.add_row(heading, *(figure(value, style) for value in values), wide, str(spread.members))
    return table


def searches(items: Iterable[SearchView]) -> RenderableType:
    table = _table("id", "state", "name", "model", "progress", "trials", "chosen", "created", right=("progress",))
    for item in items:
        table.add_row(
            str(item.id),
            Text(str(item.state), style=_SEARCH_STYLES[item.state]),
            item.name or NOTHING,
            item.model,
            f"{item.progress:.0%}",
            str(item.trials),
            item.chosen_recipe or NOTHING,
            age(item.created_at),
        )
    return table


def search(view: SearchDetails) -> RenderableType:
    """Its facts, the trials, those in full first, and what was chosen."""
    facts = _facts(
        [
            ("search", view.id),
            ("name", view.name),
            ("state", Text(str(view.state), style=_SEARCH_STYLES[view.state])),
            ("model", view.model),
            ("recipes", f"{view.candidates} may be tried, {view.ruled_out} ruled out by their plans"),
            ("progress", "" if view.state.terminal else f"{view.progress:.0%}"),
            ("created", view.created_at.isoformat(timespec="seconds")),
        ]
    )
    right = ("perplexity", "Δ", "divergence", "size", "ratio")
    table = _table("recipe", "rung", "state", *right, "limits", "front", "job or artifact", right=right)
    for trial in sorted(view.members, key=lambda trial: (trial.rung is not Rung.FULL, trial.number)):
        within = {None: NOTHING, True: "held", False: "missed"}[trial.within_limits]
        mark = "chosen" if trial.number == view.chosen else "●" if trial.on_front else ""
        table.add_row(
            trial.label,
            str(trial.rung),
            Text("reused" if trial.reused else str(trial.state), style=STATE_STYLES[trial.state]),
            figure(trial.perplexity, ".3f"),
            figure(trial.perplexity_increase, "+.1%"),
            figure(trial.divergence, ".4f"),
            NOTHING if trial.size_bytes is None else size(trial.size_bytes),
            figure(trial.size_ratio, ".1%"),
            within,
            Text(mark, style="green"),
            str(trial.artifact_id or trial.job_id or NOTHING),
        )
    told = [Text(), Text(view.explanation, style="bold")] if view.explanation else []
    return Group(facts, Text(), table, *told)


def plan(view: Plan) -> RenderableType:
    facts = _facts(
        [
            ("model", view.model),
            ("parameters", f"{count(view.parameters)} ({view.model_type})"),
            ("recipe", view.recipe_name),
            ("format", view.format),
            ("pool", view.pool),
            (
                "memory",
                _within(size(view.memory_bytes), view.memory_interval, size)
                + ("" if view.pausing else " (blocks rerun for each linear)"),
            ),
            (
                "of it on the GPU",
                _within(size(view.device_memory_bytes), view.device_memory_interval, size)
                if view.device_memory_bytes is not None
                else "",
            ),
            ("disk", _within(size(view.disk_bytes), view.disk_interval, size)),
            ("download", size(view.download_bytes)),
            ("output", f"{size(view.output_bytes)} ({view.size_ratio:.1%} of {size(view.base_bytes)})"),
            ("time", _within(f"about {duration(view.seconds)}", view.seconds_interval, duration)),
            (
                "cost",
                _within(money(view.cost, view.currency), view.cost_interval, lambda cost: money(cost, view.currency)),
            ),
            (
                "known from",
                f"{view.history_jobs} finished jobs" if view.history_jobs else "the model's configuration alone",
            ),
        ]
    )
    return Group(facts, *(Text(f"Note: {warning}", style="yellow") for warning in view.warnings))


def _within(figure: str, interval: Interval | None, spoken: Callable[[float], str]) -> str:
    return figure if interval is None else f"{figure} ({spoken(interval.low)} to {spoken(interval.high)})"


def plan_outcomes(view: PlanOutcomes) -> RenderableType:
    if not view.items:
        return Text("No job has ended yet that one worker carried through.")
    figures = ("planned", "took", "planned size", "size", "planned memory", "memory")
    table = _table("job", "recipe", "pool", *figures, right=figures)
    for item in view.items:
        table.add_row(
            str(item.job_id),
            item.recipe_name,
            item.pool,
            duration(item.planned_seconds),
            f"{duration(item.seconds)} ({item.seconds / item.planned_seconds - 1:+.0%})",
            size(item.planned_output_bytes),
            f"{size(item.output_bytes)} ({item.output_bytes / item.planned_output_bytes - 1:+.1%})",
            size(item.planned_memory_bytes),
            f"{size(item.memory_bytes)} ({item.memory_bytes / item.planned_memory_bytes - 1:+.0%})",
        )
    return table


def methods(items: Iterable[MethodView]) -> RenderableType:
    table = _table("method", "title", "family", "calibration", "GPU", "paper", "what it does")
    for method in items:
        table.add_row(
            method.method,
            method.title,
            str(method.family),
            "needed" if method.needs_calibration else "no",
            "needed" if method.needs_gpu else "no",
            method.paper,
            method.summary,
        )
    return table


def artifacts(items: Iterable[ArtifactView]) -> RenderableType:
    table = _table(
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
            figure(item.perplexity),
            size(item.size_bytes),
            f"{item.size_ratio:.1%}",
            verdict(item.verdict),
            " ".join(item.aliases),
            " ".join(item.tags),
        )
    return table


def aliases(items: Iterable[AliasView]) -> RenderableType:
    table = _table("alias", "artifact", "name", "verdict", "protected", "moved")
    for item in items:
        table.add_row(
            item.name,
            str(item.artifact_id),
            item.artifact_name,
            verdict(item.verdict),
            "yes" if item.protected else "no",
            item.moved_at.isoformat(timespec="seconds"),
        )
    return table


def alias(view: AliasDetails) -> RenderableType:
    """Where it points, and below that where it pointed before."""
    facts = _facts(
        [
            ("alias", view.name),
            ("artifact", f"{view.artifact_id} ({view.artifact_name})"),
            ("verdict", verdict(view.verdict)),
            ("protected", "yes" if view.protected else "no"),
        ]
    )
    table = _table("moved", "from", "to", "protected", "key", "reason")
    for move in view.moves:
        table.add_row(
            move.at.isoformat(timespec="seconds"),
            str(move.from_id or NOTHING),
            str(move.to_id or NOTHING),
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
    facts = _facts(
        [
            ("artifact", view.id),
            ("name", view.name),
            ("model", view.model),
            ("made of", "\n".join(f"artifact://{ancestor.artifact_id}" for ancestor in reversed(view.lineage))),
            ("recipe", view.recipe_name),
            ("format", view.format),
            ("size", f"{size(view.size_bytes)} ({view.size_ratio:.1%} of the base)"),
            ("perplexity", quality),
            ("decode", None if speed is None else f"{speed:.1f} tokens/s"),
            ("cost", money(view.cost_per_million_tokens, view.currency) + " for a million tokens"),
            ("verdict", verdict(view.verdict)),
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
    table = _table("", "perplexity", "Δ", "size", "ratio", "bits", "sparsity", right=())
    table.add_row(
        "base",
        figure(view.base.perplexity if view.base else None, ".3f"),
        "",
        size(view.base_bytes),
        "100.0%",
        "16.00",
        "0.0%",
    )
    table.add_row(
        "artifact",
        figure(view.artifact.perplexity if view.artifact else None, ".3f"),
        figure(view.perplexity_increase, "+.1%"),
        size(view.size_bytes),
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
    table = _table("speed", *right, "runtime", right=right)
    for role, speed in rows:
        spread, batch = speed.decode_spread, speed.batch
        table.add_row(
            role,
            milliseconds(speed.time_to_first_token_seconds),
            figure(speed.decode_tokens_per_second, ".1f"),
            f"{spread.low:.1f}–{spread.high:.1f}" if spread else NOTHING,
            figure(batch.decode_tokens_per_second if batch else None, ".1f"),
            f"{speed.load_seconds:.1f} s",
            size(speed.peak_memory_bytes),
            *(_joules(speed.energy) if counted else ()),
            f"{speed.runtime}, {speed.device}, {speed.threads} threads",
        )
    told = [Text(f"Energy is of {counted[0].covers}, with whatever else ran there.", style="dim")] if counted else []
    return [Text(), table, *told]


def _joules(energy: Energy | None) -> tuple[str, str]:
    if energy is None:
        return NOTHING, NOTHING
    return figure(energy.joules_per_token, ".3g"), figure(energy.batch_joules_per_token, ".3g")


def proofs(view: Report) -> list[RenderableType]:
    """The smoke matrix: what each runtime did with the artifact."""
    if not view.runtimes:
        return []
    right = ("perplexity", "decode tok/s")
    table = _table("runtime", "version", "loads", "generates", *right[:1], "agrees", *right[1:], "remark", right=right)
    for proof in view.runtimes:
        decode = {role: f"{speed.decode_tokens_per_second:.1f}" for role, speed in view.speeds_in(proof).items()}
        table.add_row(
            proof.runtime,
            proof.version or NOTHING,
            _mark(proof.loads if proof.version else None),
            _mark(proof.generates),
            figure(proof.perplexity, ".3f"),
            _mark(proof.agrees),
            f"{decode['artifact']} (base {decode.get('base', NOTHING)})" if decode else NOTHING,
            proof.detail or "",
        )
    return [Text(), table]


def _mark(value: bool | None) -> Text:
    return Text(NOTHING) if value is None else Text("yes", style="green") if value else Text("no", style="yellow")


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
    passages = _table("KL", "text goes on with", "base", "artifact", "after", right=("KL",))
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
    table = _table("task", "metric", *right, "verdict", right=right)
    for result in results:
        metric = result.main
        table.add_row(
            result.title,
            metric.name,
            str(result.rows),
            figure(metric.base, ".2%"),
            f"{metric.artifact:.2%} ± {metric.artifact_stderr:.2%}",
            _points(metric),
            figure(result.flipped, ".1%"),
            Text(NOTHING) if metric.verdict is None else Text(metric.verdict, style=_TASK_STYLES[metric.verdict]),
        )
    return table


def _points(metric: TaskMetric) -> str:
    if metric.difference is None or metric.low is None or metric.high is None:
        return NOTHING
    return f"{100 * metric.difference:+.2f} [{100 * metric.low:+.2f}, {100 * metric.high:+.2f}]"


def domains(results: Iterable[DomainResult]) -> RenderableType:
    """Token perplexity of each text; texts differ, so only the rises compare."""
    table = _table("domain", "base", "artifact", "Δ", right=("base", "artifact", "Δ"))
    for result in results:
        base = figure(result.base.perplexity if result.base else None, ".3f")
        table.add_row(result.name, base, figure(result.artifact.perplexity, ".3f"), figure(result.increase, "+.1%"))
    return table


def refusal(result: RefusalResult) -> RenderableType:
    """Shares of the prompts that were refused."""
    table = _table("prompts", "asked", "base refuses", "artifact refuses", right=("asked",))
    for share in result.shares:
        table.add_row(share.kind, str(share.prompts), figure(share.base, ".0%"), figure(share.artifact, ".0%"))
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
            return size(value)
        case "money":
            return money(value, view.cost.currency if view.cost else None)
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
    table = _table("name", *right, "verdict", "front", *(["artifact"] if is_wide else []), right=right)
    ordered = sorted(view.points, key=lambda point: (point.artifact_id is not None, -point.size_bytes, point.name))
    for point in ordered:
        table.add_row(
            *_front_row(point, base, view.currency), *([str(point.artifact_id or NOTHING)] if is_wide else [])
        )
    if is_wide:
        return table
    ids = [(str(point.artifact_id), point.name) for point in ordered if point.artifact_id]
    return Group(table, Text(), _facts(ids))


def _front_row(point: FrontPoint, base: FrontPoint | None, currency: str | None) -> list[str | Text]:
    increase = f"{point.perplexity / base.perplexity - 1:+.1%}" if base and point is not base else ""
    return [
        point.name,
        f"{point.perplexity:.3f}",
        increase,
        size(point.size_bytes),
        f"{point.size_bytes / base.size_bytes:.1%}" if base else NOTHING,
        figure(point.decode_tokens_per_second, ".1f"),
        milliseconds(point.time_to_first_token_seconds),
        NOTHING if point.peak_memory_bytes is None else size(point.peak_memory_bytes),
        money(point.cost_per_million_tokens, currency),
        verdict(point.verdict),
        Text("●", style="green") if point.on_front else Text("·", style="dim"),
    ]


def sweep_plan(plan: SweepPlan) -> RenderableType:
    """Each recipe, and the totals of the jobs that it would make."""
    table = _table("recipe", "pool", "time", "memory", "size", "ratio", "", right=("time", "memory", "size", "ratio"))
    for member in plan.members:
        table.add_row(
            member.label,
            member.pool,
            duration(member.seconds),
            size(member.memory_bytes),
            size(member.output_bytes),
            f"{member.size_ratio:.1%}",
            "there already" if member.reused else "",
        )
    facts = _facts(
        [
            ("jobs", f"{plan.jobs}, and {plan.reused} there already" if plan.reused else str(plan.jobs)),
            ("worker time", duration(plan.seconds)),
            ("cost", money(plan.cost, plan.currency)),
            ("memory", f"{size(plan.memory_bytes)} at most"),
            ("artifacts", size(plan.output_bytes)),
        ]
    )
    return Group(table, Text(), facts, *(Text(f"Note: {warning}", style="yellow") for warning in plan.warnings))


def comparison(
    names: Sequence[str], settings: Sequence[Line], figures: Sequence[Line], tasks: Sequence[TaskLine]
) -> RenderableType:
    """A column for each artifact; first what was done differently, then what was measured, then the tasks."""
    table = _table("", *names)
    for line in settings:
        table.add_row(line.name, *(NOTHING if value is None else str(value) for value in line.values))
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
        return Text(NOTHING)
    lines = Text(f"{metric.artifact:.2%}")
    if metric.difference is not None:
        lines.append(f"\n{_points(metric)}")
    if metric.verdict is not None:
        lines.append(f" {metric.verdict}", style=_TASK_STYLES[metric.verdict])
    return lines


def _compared(line: Line, value: Value) -> str:
    if value is None or isinstance(value, str):
        return NOTHING if value is None else value
    match line.unit:
        case "bytes":
            return size(value)
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
            return milliseconds(value) if value < 1 else f"{value:.1f} s"
        case "joules":
            return f"{value:.3g} J"
    return f"{value:.2f}"


def prices(book: PriceBook) -> RenderableType:
    table = _table("name", "device", "memory", "price an hour", "as of", right=("memory", "price an hour"))
    for item in book.items:
        table.add_row(
            item.name,
            item.device,
            size(item.memory_bytes),
            f"{item.price_per_hour:g} {item.currency}",
            item.as_of.isoformat(),
        )
    return table


def savings(view: Savings, served: Mapping[str, Serving | None]) -> RenderableType:
    """A month of the base beside a month of the artifact."""
    table = _table("", "smallest instance", "a million tokens", "a month", right=("a million tokens", "a month"))
    for role, cost in (("base", view.base_cost), ("artifact", view.artifact_cost)):
        serving = served[role]
        table.add_row(
            role,
            serving.instance.name if serving else NOTHING,
            money(serving.per_million_tokens if serving else None, view.currency),
            money(cost, view.currency),
        )
    facts = _facts(
        [
            ("traffic", f"{count(view.tokens)} tokens and {count(view.loads)} loads a month"),
            ("bytes saved", f"{'-' if view.bytes_saved < 0 else ''}{size(abs(view.bytes_saved))}"),
            ("money saved", money(view.saved, view.currency)),
        ]
    )
    return Group(table, Text(), facts)


def keys(items: Iterable[KeyView]) -> RenderableType:
    table = _table("id", "name", "prefix", "scopes", "created", "last used", "state")
    for key in items:
        if key.revoked_at:
            standing = "revoked"
        elif key.expires_at:
            standing = f"until {key.expires_at.isoformat(timespec='minutes')}"
        else:
            standing = ""
        used = age(key.last_used_at) if key.last_used_at else "never"
        table.add_row(str(key.id), key.name, key.prefix, " ".join(key.scopes), age(key.created_at), used, standing)
    return table


def calibrations(items: Iterable[CalibrationView]) -> RenderableType:
    right = ("sequences", "seed")
    table = _table("id", "source", *right, "model", "created", right=right)
    for item in items:
        drawn = f"{item.samples} × {item.sequence_length}"
        table.add_row(str(item.id), item.source, drawn, str(item.seed), item.model, age(item.created_at))
    return table


def calibration(view: CalibrationView) -> RenderableType:
    experts = [tokens for block in view.coverage.values() for tokens in block]
    reached = f"{len(experts)} experts, of which the least reached saw {min(experts)} tokens" if experts else ""
    return _facts(
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
            ("size", size(view.size_bytes)),
            ("job", view.job_id),
            ("created", view.created_at.isoformat(timespec="seconds")),
        ]
    )


def datasets(items: Iterable[DatasetView]) -> RenderableType:
    table = _table("id", "name", "size", "created", right=("size",))
    for item in items:
        table.add_row(str(item.id), item.name, size(item.size_bytes), age(item.created_at))
    return table
