"""A report as people read it: base beside artifact, the gate, the runtimes that proved it, each layer's error."""

from collections.abc import Callable, Mapping
from typing import Literal

import streamlit as st

from paredown.contracts.artifact import Manifest, Override
from paredown.contracts.gate import TERMS
from paredown.contracts.report import (
    Check,
    Exemplar,
    Prediction,
    Report,
    RuntimeProof,
    Speed,
    TaskMetric,
    TaskResult,
    Verdict,
)
from paredown.web import charts, parts
from paredown.web import format as fmt

# Passages that are open at once; the others lie in a closed part.
_EXEMPLARS = 4

_SPEEDS: dict[str, Callable[[Speed], str]] = {
    "First token": lambda speed: fmt.seconds(speed.time_to_first_token_seconds),
    "Prefill": lambda speed: fmt.speed(speed.prefill_tokens_per_second),
    "Decode": lambda speed: fmt.speed(speed.decode_tokens_per_second, speed.decode_spread),
    "Decode, 8 sequences": lambda speed: fmt.speed(
        speed.batch.decode_tokens_per_second if speed.batch else None, speed.batch.spread if speed.batch else None
    ),
    "Load": lambda speed: fmt.seconds(speed.load_seconds),
    "Peak memory": lambda speed: fmt.size(speed.peak_memory_bytes),
}
# Where the worker's machine counts energy; elsewhere there is nothing to show.
_ENERGIES: dict[str, Callable[[Speed], str]] = {
    "Energy of a token": lambda speed: fmt.joules(speed.energy.joules_per_token if speed.energy else None),
    "Energy of a token, 8 sequences": lambda speed: fmt.joules(
        speed.energy.batch_joules_per_token if speed.energy else None
    ),
}


def show(manifest: Manifest, override: Override | None = None) -> None:
    report = manifest.report
    _metrics(report)
    for warning in report.warnings:
        st.warning(parts.plain(warning), icon=":material/warning:")
    _gate(report, override)
    left, right = st.columns(2, gap="large")
    with left:
        _quality(report)
    with right:
        _runtimes(report)
    _divergence(report)
    _generations(report)
    _tasks(report)
    _domains(report)
    _refusal(report)
    _blocks(report)
    _layers(report)


def _metrics(report: Report) -> None:
    base, artifact = report.speeds.get("base"), report.speeds.get("artifact")
    cost = report.cost
    unmeasured, base_unmeasured = "not measured", "base not measured"
    with st.container(horizontal=True, key="report-metrics"):
        _metric(
            "Perplexity",
            fmt.perplexity(report.artifact.perplexity if report.artifact else None),
            f"{fmt.change(report.perplexity_increase)}, base {fmt.perplexity(report.base.perplexity)}"
            if report.base
            else (base_unmeasured if report.artifact else unmeasured),
        )
        _metric(
            "Size", fmt.size(report.size_bytes), f"{fmt.percent(report.size_ratio)} of {fmt.size(report.base_bytes)}"
        )
        _metric(
            "Decode speed",
            fmt.speed(artifact.decode_tokens_per_second if artifact else None),
            f"base {fmt.speed(base.decode_tokens_per_second)}"
            if base
            else (base_unmeasured if artifact else unmeasured),
        )
        _metric(
            "A million tokens",
            fmt.money(cost.artifact_per_million_tokens if cost else None, cost.currency if cost else None),
            f"base {fmt.money(cost.base_per_million_tokens, cost.currency)}" if cost else unmeasured,
        )


def _metric(label: str, value: str, note: str) -> None:
    st.metric(label, value, note, delta_color="off", delta_arrow="off", border=True)


def _gate(report: Report, override: Override | None) -> None:
    st.subheader("Budget", anchor=False)
    if report.gate is None:
        st.caption("The job set no budget.")
        return
    if override:
        st.html(parts.verdict_badge(Verdict.OVERRIDDEN))
        st.caption(
            f"It missed its budget. The key {parts.plain(override.key_name)} has overridden that on "
            f"{fmt.moment(override.at)}: {parts.plain(override.reason)}"
        )
    else:
        st.html(parts.verdict_badge(report.gate.verdict))
        if report.gate.verdict is Verdict.MISSED:
            st.caption("This artifact missed its budget. It is kept as evidence, and it is not a success.")
    currency = report.cost.currency if report.cost else None
    parts.table(["Term", "Measured", "Limit", ""], [_check(check, currency) for check in report.gate.checks])


def _check(check: Check, currency: str | None) -> list[str]:
    mark, tone = ("met", "good") if check.passed else ("missed", "bad")
    term = TERMS[check.figure]
    limit = fmt.limit(check.limit, term.unit, currency)
    measured = "not measured" if check.value is None else fmt.limited(check.value, term.unit, currency)
    return [term.title, measured, f"at {check.bound} {limit}", parts.badge(mark, tone)]


def _divergence(report: Report) -> None:
    found = report.divergence
    if found is None:
        return
    st.subheader("Divergence from the base", anchor=False)
    st.caption(
        "How far the artifact's predictions lie from the base's over the evaluation text: KL(base‖artifact) of each "
        f"of {fmt.count(found.predicted_tokens)} tokens, in nats. An answer is the token that a model holds likeliest."
    )
    parts.facts(
        [
            ("Mean", fmt.nats(found.mean)),
            ("Median", fmt.nats(found.median)),
            ("90th percentile", fmt.nats(found.p90)),
            ("99th percentile", fmt.nats(found.p99)),
            ("Largest", fmt.nats(found.maximum)),
            ("Same answer as the base", fmt.percent(found.top1_agreement)),
            ("Right answers lost", fmt.percent(found.answers_lost)),
            ("Wrong answers mended", fmt.percent(found.answers_won)),
        ]
    )
    if found.exemplars:
        st.markdown("**What changed most**")
        st.caption("The passages where the two lie farthest apart, with what each would have written next.")
        for exemplar in found.exemplars[:_EXEMPLARS]:
            _exemplar(exemplar)
        rest = found.exemplars[_EXEMPLARS:]
        if rest:
            with st.expander(f"{len(rest)} more", icon=":material/unfold_more:"):
                for exemplar in rest:
                    _exemplar(exemplar)


def _exemplar(exemplar: Exemplar) -> None:
    def said(who: str, prediction: Prediction, of_text: float) -> str:
        right = prediction.token == exemplar.token
        return (
            f"<div><small>{who}</small><span>{_token(prediction.token)} {fmt.percent(prediction.probability)}"
            + ("" if right else f" · the text's token {fmt.percent(of_text)}")
            + "</span></div>"
        )

    st.html(
        '<div class="pare-exemplar">'
        f'<p class="pare-quote">…{parts.escaped(exemplar.context)}<mark>{parts.escaped(exemplar.token)}</mark></p>'
        '<div class="pare-facts">'
        + said("Base", exemplar.base, exemplar.base_probability)
        + said("Artifact", exemplar.artifact, exemplar.artifact_probability)
        + f"<div><small>Divergence</small><span>{fmt.nats(exemplar.divergence)}</span></div></div></div>"
    )


def _token(token: str) -> str:
    """Spaces and line breaks are what many tokens differ in."""
    return parts.mono(token.replace(" ", "␣").replace("\n", "⏎"))


def _generations(report: Report) -> None:
    written = report.generations
    if not written:
        return
    st.subheader("What it writes by itself", anchor=False)
    artifact, base = written.get("artifact"), written.get("base")
    parts.facts(
        [
            ("Artifact repeats", fmt.percent(artifact.repetition if artifact else None)),
            ("Base repeats", fmt.percent(base.repetition if base else None)),
            ("Rise", fmt.change(report.repetition_increase)),
        ]
    )
    st.caption(
        "Share of 4-grams of tokens that occurred before in the same greedy text (seq-rep-4), mean over fixed prompts. "
        "A broken model runs in a loop; small sound ones repeat themselves too, so the base is the measure."
    )
    for role, generation in (("Artifact", artifact), ("Base", base)):
        if generation and generation.samples:
            with st.expander(f"{role}: {len(generation.samples)} texts", icon=":material/notes:"):
                for sample in generation.samples:
                    st.html(f'<div class="pare-quote">{parts.escaped(sample)}</div>')


def _quality(report: Report) -> None:
    st.subheader("Base and artifact", anchor=False)
    base, artifact = report.speeds.get("base"), report.speeds.get("artifact")
    rows = [["Size", fmt.size(report.base_bytes), fmt.size(report.size_bytes)]]
    if report.artifact:
        known = report.base.perplexity if report.base else None
        rows.insert(0, ["Perplexity", fmt.perplexity(known), fmt.perplexity(report.artifact.perplexity)])
    if artifact:
        rows += _speed_rows(base, artifact)
    if report.cost:
        rows.append(
            [
                "A million tokens",
                fmt.money(report.cost.base_per_million_tokens, report.cost.currency),
                fmt.money(report.cost.artifact_per_million_tokens, report.cost.currency),
            ]
        )
    parts.table(["", "Base", "Artifact"], rows)
    if report.artifact:
        protocol = report.artifact.protocol
        st.caption(
            f"Perplexity on {parts.plain(protocol.source)}, {protocol.samples} × {protocol.sequence_length} tokens, "
            f"{protocol.dtype}. Protocol `{report.artifact.protocol_hash[:12]}`"
            + (", base from the cache." if report.base and report.base.cached else ".")
        )
    if artifact:
        _speed_caption(artifact)


def _runtimes(report: Report) -> None:
    st.subheader("Runtimes", anchor=False)
    if not report.runtimes:
        st.caption("No runtime was tried.")
    else:
        parts.table(
            ["Runtime", "Loads", "Generates", "Perplexity", "Agrees", "Decode", "Base"],
            [_proof(proof, report.speeds_in(proof)) for proof in report.runtimes],
        )
    for proof in report.runtimes:
        if proof.sample or proof.detail:
            st.html(f"<b>{parts.escaped(proof.runtime)}</b>")
        if proof.sample:
            st.html(f'<div class="pare-quote">{parts.escaped(proof.sample)}</div>')
        if proof.detail:
            st.caption(parts.plain(proof.detail))
        # The format's own runtime has its figures beside the base's, above.
        if proof.speeds:
            _speeds(proof.speeds)
    run = [
        ("Job took", fmt.duration(report.cost.job_seconds) if report.cost else fmt.ABSENT),
        ("Job cost", fmt.money(report.cost.job, report.cost.currency) if report.cost else fmt.ABSENT),
        ("Peak memory", fmt.size(report.peak_memory_bytes or None)),
        ("Zeros", fmt.percent(report.sparsity)),
        ("Bits for each weight", f"{report.average_bits:.2f}"),
    ]
    run += [(f"{phase.capitalize()} phase", fmt.duration(seconds)) for phase, seconds in report.phase_seconds.items()]
    st.subheader("The run", anchor=False)
    parts.facts(run)


def _speeds(measured: Mapping[Literal["base", "artifact"], Speed]) -> None:
    base, artifact = measured.get("base"), measured["artifact"]
    rows = _speed_rows(base, artifact)
    parts.table(["", "Base", "Artifact"], rows)
    _speed_caption(artifact)


def _speed_rows(base: Speed | None, artifact: Speed) -> list[list[str]]:
    shown = _SPEEDS | (_ENERGIES if artifact.energy else {})
    return [[name, write(base) if base else fmt.ABSENT, write(artifact)] for name, write in shown.items()]


def _speed_caption(speed: Speed) -> None:
    st.caption(
        f"Speed in {parts.plain(speed.runtime)} on {parts.plain(speed.device)}, {speed.threads} threads, "
        f"{speed.prompt_tokens} prompt and {speed.new_tokens} new tokens, median of {speed.repeats}."
        + (f" Energy is of {parts.plain(speed.energy.covers)}." if speed.energy else "")
    )


def _proof(proof: RuntimeProof, measured: Mapping[Literal["base", "artifact"], Speed]) -> list[str]:
    base, artifact = measured.get("base"), measured.get("artifact")

    def mark(value: bool | None) -> str:
        return fmt.ABSENT if value is None else parts.badge("yes", "good") if value else parts.badge("no", "warn")

    return [
        f"<b>{parts.escaped(proof.runtime)}</b> {parts.escaped(proof.version)}",
        # Without a version it was not there to be tried.
        mark(proof.loads if proof.version else None),
        mark(proof.generates),
        fmt.perplexity(proof.perplexity),
        mark(proof.agrees),
        fmt.speed(artifact.decode_tokens_per_second if artifact else None),
        fmt.speed(base.decode_tokens_per_second if base else None),
    ]


_VERDICTS: dict[str | None, tuple[str, str]] = {
    "better": ("better", "good"),
    "same": ("same", "dim"),
    "worse": ("worse", "bad"),
    None: ("no base", "dim"),
}


def _tasks(report: Report) -> None:
    if not report.tasks:
        return
    st.subheader("Tasks", anchor=False)
    parts.table(["Task", "Rows", "Base", "Artifact", "Difference", "Flipped", ""], list(map(_task, report.tasks)))
    st.caption(
        "The difference has its 95 % interval, by paired bootstrap over rows; a verdict is same where it holds zero. "
        "Flipped is the share of rows that only one of the two has right."
    )
    for result in report.tasks:
        with st.expander(f"{result.title}: all figures", icon=":material/table_rows:"):
            st.dataframe(_figures(result), hide_index=True, placeholder=fmt.ABSENT)
            examples = f", {result.protocol.num_fewshot} examples" if result.protocol.num_fewshot else ""
            st.caption(
                f"{parts.plain(result.source)}, {result.rows} rows{examples}, {result.protocol.dtype}, "
                f"{parts.plain(result.protocol.harness)}, {parts.plain(result.runtime)}. "
                f"Protocol `{result.protocol_hash[:12]}`."
            )


def _task(result: TaskResult) -> list[str]:
    metric = result.main
    return [
        parts.escaped(f"{result.title}, {metric.name}"),
        str(result.rows),
        fmt.percent(metric.base),
        f"{fmt.percent(metric.artifact)} ± {fmt.percent(metric.artifact_stderr)}",
        task_difference(metric),
        fmt.percent(result.flipped),
        task_badge(metric),
    ]


def task_difference(metric: TaskMetric) -> str:
    """`-5.00 points (-7.10 to -2.90)`, from the base."""
    if metric.difference is None or metric.low is None or metric.high is None:
        return fmt.ABSENT
    return f"{100 * metric.difference:+.2f} points ({100 * metric.low:+.2f} to {100 * metric.high:+.2f})"


def task_badge(metric: TaskMetric) -> str:
    return parts.badge(*_VERDICTS[metric.verdict])


def _figures(result: TaskResult) -> list[dict[str, str | int | float | None]]:
    """Every metric over all rows, then the main one over the rows of each kind."""
    metrics: list[dict[str, str | int | float | None]] = [
        {"": metric.name, "Rows": result.rows, "Base": metric.base, "Artifact": metric.artifact}
        for metric in result.metrics
    ]
    return metrics + [
        {"": group.name, "Rows": group.rows, "Base": group.base, "Artifact": group.artifact} for group in result.groups
    ]


def _domains(report: Report) -> None:
    if not report.domains:
        return
    st.subheader("Domains", anchor=False)
    rows = [
        [
            parts.escaped(domain.name),
            fmt.perplexity(domain.base.perplexity if domain.base else None),
            fmt.perplexity(domain.artifact.perplexity),
            fmt.change(domain.increase),
            f"<code>{domain.artifact.protocol_hash[:12]}</code>",
        ]
        for domain in report.domains
    ]
    parts.table(["Domain", "Base", "Artifact", "Rise", "Protocol"], rows)
    st.caption("Token perplexity of each text. Texts differ, so domains compare by their rise, not with each other.")


def _refusal(report: Report) -> None:
    if report.refusal is None:
        return
    st.subheader("Refusal", anchor=False)
    rows = [
        [share.kind.capitalize(), str(share.prompts), fmt.percent(share.base), fmt.percent(share.artifact)]
        for share in report.refusal.shares
    ]
    parts.table(["Prompts that should be refused", "Asked", "Base refuses", "Artifact refuses"], rows)
    st.caption(
        "By the words in which an answer begins; it compares base and artifact, and is no measure of safety. "
        f"Protocol `{report.refusal.protocol_hash[:12]}`."
    )
    if report.refusal.changed:
        with st.expander("Prompts on which they part", icon=":material/compare_arrows:"):
            changed = [change.model_dump() for change in report.refusal.changed]
            st.dataframe(changed, hide_index=True, placeholder=fmt.ABSENT)


def _blocks(report: Report) -> None:
    for stage in report.stages:
        if stage.losses:
            st.subheader("Loss while training", anchor=False)
            st.caption(f"{parts.plain(stage.summary)} The loss is {parts.plain(stage.measure)}.")
            st.altair_chart(charts.losses_chart(stage), alt=f"Loss of each step of {stage.method}")
        else:
            st.subheader("Importance of each block", anchor=False)
            st.caption(f"{parts.plain(stage.summary)} Importance is {parts.plain(stage.measure)}.")
            st.altair_chart(charts.blocks_chart(stage), alt=f"Importance of each block to {stage.method}")


def _layers(report: Report) -> None:
    if not report.layers:
        return
    st.subheader("Error of each layer", anchor=False)
    lines = charts.layer_lines(report.layers)
    chart = charts.layers_chart(lines)
    if chart is None:
        st.caption("No output errors are known: the method saw no calibration text.")
    else:
        st.altair_chart(chart, alt="Relative output error of each layer along the model's depth")
    with st.expander("All layers", icon=":material/table_rows:"):
        st.dataframe(
            lines,
            hide_index=True,
            column_order=["name", "error", "bits", "zeros"],
            column_config={
                "name": st.column_config.TextColumn("Layer", width="large"),
                "error": st.column_config.NumberColumn("Error", format="scientific"),
                "bits": st.column_config.NumberColumn("Bits", format="%.2f"),
                "zeros": st.column_config.NumberColumn("Zeros", format="percent"),
            },
            placeholder=fmt.ABSENT,
        )
