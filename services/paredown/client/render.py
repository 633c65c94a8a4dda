"""Tables for people: jobs, sweeps, searches and what is around them."""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paredown.client import wording
from paredown.contracts.access import KeyView
from paredown.contracts.dataset import DatasetView
from paredown.contracts.job import Interval, JobState, JobView, Plan, PlanOutcomes
from paredown.contracts.methods import MethodView
from paredown.contracts.prices import PriceBook
from paredown.contracts.report import Verdict
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


def make_table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", no_wrap=column in ("id", "job", "artifact", *right)
        )
    return table


def make_facts(pairs: Iterable[tuple[str, object]]) -> Table:
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
    return Text(wording.NOTHING) if value is None else Text(str(value), style=_VERDICT_STYLES[value])


def jobs(items: Iterable[JobView]) -> RenderableType:
    table = make_table("id", "state", "recipe", "model", "pool", "progress", "created")
    for job in items:
        if job.error:
            progress = job.error.code
        elif job.progress and not job.state.terminal:
            progress = f"{job.progress.fraction:.0%} {wording.step(job.progress)}"
        else:
            progress = ""
        table.add_row(
            str(job.id), state(job), job.recipe_name, job.spec.model, job.pool, progress, wording.age(job.created_at)
        )
    return table


def job(view: JobView) -> RenderableType:
    took = (view.finished_at - view.started_at).total_seconds() if view.finished_at and view.started_at else None
    error = f"{view.error.detail} ({view.error.code})" if view.error else None
    if view.error and view.error.field:
        error = f"{error}, field {view.error.field}"
    return make_facts(
        [
            ("job", view.id),
            ("state", state(view)),
            ("error", error),
            ("recipe", view.recipe_name),
            ("model", view.spec.model),
            ("pool", view.pool),
            ("canary", wording.canary(view.canary).removeprefix("Canary: ") if view.canary else ""),
            ("progress", "" if view.state.terminal else wording.step(view.progress)),
            ("failures", view.failures or ""),
            ("created", view.created_at.isoformat(timespec="seconds")),
            ("run time", wording.duration(took) if took is not None else ""),
            ("artifact", view.artifact_id),
        ]
    )


def sweeps(items: Iterable[SweepView]) -> RenderableType:
    table = make_table("id", "state", "name", "model", "progress", "recipes", "created", right=("progress",))
    for item in items:
        name = item.name or wording.NOTHING
        progress, made = f"{item.progress:.0%}", sweep_counts(item)
        table.add_row(str(item.id), sweep_state(item), name, item.model, progress, made, wording.age(item.created_at))
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
    facts = make_facts(
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
    table = make_table("recipe", "state", *right, "verdict", "front", "job or artifact", right=right)
    for member in view.members:
        table.add_row(
            member.label,
            _member_state(member),
            wording.figure(member.perplexity, ".3f"),
            wording.figure(member.perplexity_increase, "+.1%"),
            wording.NOTHING if member.size_bytes is None else wording.size(member.size_bytes),
            wording.figure(member.size_ratio, ".1%"),
            verdict(member.verdict),
            Text("●", style="green") if member.artifact_id in unbeaten and member.artifact_id else Text(""),
            str(member.artifact_id or member.job_id or wording.NOTHING),
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
    table = make_table("calibration", "state", *headings, "verdict", "job or artifact", right=headings)
    for member in view.members:
        figures = [wording.figure(getattr(member, name), style) for name, (_, style) in _SPREAD_FIGURES.items()]
        made = str(member.artifact_id or member.job_id or wording.NOTHING)
        table.add_row(member.label, _member_state(member), *figures, verdict(member.verdict), made)
    return table


def _spread(spreads: Iterable[FigureSpread]) -> RenderableType:
    """A line for each figure: how far it lies apart over the calibrations."""
    right = ("minimum", "median", "maximum", "max − min")
    table = make_table("figure", *right, "of", right=right)
    for spread in spreads:
        heading, style = _SPREAD_FIGURES[spread.figure]
        values = (spread.minimum, spread.median, spread.maximum)
        wide = wording.figure(spread.range, style.removeprefix("+"))
        table.add_row(heading, *(wording.figure(value, style) for value in values), wide, str(spread.members))
    return table


def searches(items: Iterable[SearchView]) -> RenderableType:
    table = make_table("id", "state", "name", "model", "progress", "trials", "chosen", "created", right=("progress",))
    for item in items:
        table.add_row(
            str(item.id),
            Text(str(item.state), style=_SEARCH_STYLES[item.state]),
            item.name or wording.NOTHING,
            item.model,
            f"{item.progress:.0%}",
            str(item.trials),
            item.chosen_recipe or wording.NOTHING,
            wording.age(item.created_at),
        )
    return table


def search(view: SearchDetails) -> RenderableType:
    """Its facts, the trials, those in full first, and what was chosen."""
    facts = make_facts(
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
    table = make_table("recipe", "rung", "state", *right, "limits", "front", "job or artifact", right=right)
    for trial in sorted(view.members, key=lambda trial: (trial.rung is not Rung.FULL, trial.number)):
        within = {None: wording.NOTHING, True: "held", False: "missed"}[trial.within_limits]
        mark = "chosen" if trial.number == view.chosen else "●" if trial.on_front else ""
        table.add_row(
            trial.label,
            str(trial.rung),
            Text("reused" if trial.reused else str(trial.state), style=STATE_STYLES[trial.state]),
            wording.figure(trial.perplexity, ".3f"),
            wording.figure(trial.perplexity_increase, "+.1%"),
            wording.figure(trial.divergence, ".4f"),
            wording.NOTHING if trial.size_bytes is None else wording.size(trial.size_bytes),
            wording.figure(trial.size_ratio, ".1%"),
            within,
            Text(mark, style="green"),
            str(trial.artifact_id or trial.job_id or wording.NOTHING),
        )
    told = [Text(), Text(view.explanation, style="bold")] if view.explanation else []
    return Group(facts, Text(), table, *told)


def plan(view: Plan) -> RenderableType:
    facts = make_facts(
        [
            ("model", view.model),
            ("parameters", f"{wording.count(view.parameters)} ({view.model_type})"),
            ("recipe", view.recipe_name),
            ("format", view.format),
            ("pool", view.pool),
            (
                "memory",
                _within(wording.size(view.memory_bytes), view.memory_interval, wording.size)
                + ("" if view.pausing else " (blocks rerun for each linear)"),
            ),
            (
                "of it on the GPU",
                _within(wording.size(view.device_memory_bytes), view.device_memory_interval, wording.size)
                if view.device_memory_bytes is not None
                else "",
            ),
            ("disk", _within(wording.size(view.disk_bytes), view.disk_interval, wording.size)),
            ("download", wording.size(view.download_bytes)),
            ("output", f"{wording.size(view.output_bytes)} ({view.size_ratio:.1%} of {wording.size(view.base_bytes)})"),
            ("time", _within(f"about {wording.duration(view.seconds)}", view.seconds_interval, wording.duration)),
            (
                "cost",
                _within(
                    wording.money(view.cost, view.currency),
                    view.cost_interval,
                    lambda cost: wording.money(cost, view.currency),
                ),
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
    table = make_table("job", "recipe", "pool", *figures, right=figures)
    for item in view.items:
        table.add_row(
            str(item.job_id),
            item.recipe_name,
            item.pool,
            wording.duration(item.planned_seconds),
            f"{wording.duration(item.seconds)} ({item.seconds / item.planned_seconds - 1:+.0%})",
            wording.size(item.planned_output_bytes),
            f"{wording.size(item.output_bytes)} ({item.output_bytes / item.planned_output_bytes - 1:+.1%})",
            wording.size(item.planned_memory_bytes),
            f"{wording.size(item.memory_bytes)} ({item.memory_bytes / item.planned_memory_bytes - 1:+.0%})",
        )
    return table


def methods(items: Iterable[MethodView]) -> RenderableType:
    table = make_table("method", "title", "family", "calibration", "GPU", "paper", "what it does")
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


def sweep_plan(plan: SweepPlan) -> RenderableType:
    """Each recipe, and the totals of the jobs that it would make."""
    table = make_table(
        "recipe", "pool", "time", "memory", "size", "ratio", "", right=("time", "memory", "size", "ratio")
    )
    for member in plan.members:
        table.add_row(
            member.label,
            member.pool,
            wording.duration(member.seconds),
            wording.size(member.memory_bytes),
            wording.size(member.output_bytes),
            f"{member.size_ratio:.1%}",
            "there already" if member.reused else "",
        )
    facts = make_facts(
        [
            ("jobs", f"{plan.jobs}, and {plan.reused} there already" if plan.reused else str(plan.jobs)),
            ("worker time", wording.duration(plan.seconds)),
            ("cost", wording.money(plan.cost, plan.currency)),
            ("memory", f"{wording.size(plan.memory_bytes)} at most"),
            ("artifacts", wording.size(plan.output_bytes)),
        ]
    )
    return Group(table, Text(), facts, *(Text(f"Note: {warning}", style="yellow") for warning in plan.warnings))


def prices(book: PriceBook) -> RenderableType:
    table = make_table("name", "device", "memory", "price an hour", "as of", right=("memory", "price an hour"))
    for item in book.items:
        table.add_row(
            item.name,
            item.device,
            wording.size(item.memory_bytes),
            f"{item.price_per_hour:g} {item.currency}",
            item.as_of.isoformat(),
        )
    return table


def keys(items: Iterable[KeyView]) -> RenderableType:
    table = make_table("id", "name", "prefix", "scopes", "created", "last used", "state")
    for key in items:
        if key.revoked_at:
            standing = "revoked"
        elif key.expires_at:
            standing = f"until {key.expires_at.isoformat(timespec='minutes')}"
        else:
            standing = ""
        used = wording.age(key.last_used_at) if key.last_used_at else "never"
        table.add_row(
            str(key.id), key.name, key.prefix, " ".join(key.scopes), wording.age(key.created_at), used, standing
        )
    return table


def datasets(items: Iterable[DatasetView]) -> RenderableType:
    table = make_table("id", "name", "size", "created", right=("size",))
    for item in items:
        table.add_row(str(item.id), item.name, wording.size(item.size_bytes), wording.age(item.created_at))
    return table
