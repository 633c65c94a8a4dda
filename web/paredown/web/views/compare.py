"""Compare: two to six artifacts side by side, and nothing of what they share."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import streamlit as st

from paredown.client import comparison
from paredown.client.comparison import MOST_COMPARED, Line, TaskLine, Value
from paredown.contracts.artifact import Manifest
from paredown.contracts.report import TaskMetric
from paredown.web import charts, parts, report, session
from paredown.web import format as fmt

_ALL = "mean of each block"
_WRITE: dict[str, Callable[[float], str]] = {
    "number": lambda value: f"{value:.2f}",
    "perplexity": fmt.perplexity,
    "divergence": lambda value: f"{value:.4f}",
    "change": fmt.change,
    "share": fmt.percent,
    "bytes": fmt.size,
    "tokens/s": fmt.speed,
    "seconds": fmt.seconds,
    "joules": fmt.joules,
}


def page() -> None:
    parts.heading("Compare", f"Two to {MOST_COMPARED} artifacts side by side: what differs, and what came of it.")
    ids = _ids()
    if not 2 <= len(ids) <= MOST_COMPARED:
        parts.empty_state(
            f"This address names {len(ids)} artifacts; two to {MOST_COMPARED} can be compared. Choose them on the "
            "trade-offs chart or in the catalogue.",
            page=parts.TRADE_OFFS,
            action="Trade-offs",
            icon="compare",
        )
        return
    client = session.client()
    views = [session.remembered(f"artifact.{item}", 5, partial(client.artifact, item)) for item in ids]
    manifests = [session.remembered(f"manifest.{item}", 600, partial(client.manifest, item)) for item in ids]
    names = comparison.labels(views)
    with st.container(horizontal=True, key="compared"):
        for view, name in zip(views, names, strict=True):
            st.page_link(
                parts.ARTIFACT,
                label=f"**{parts.plain(name)}**",
                icon=":material/deployed_code:",
                query_params={"id": str(view.id)},
            )
    _tables(names, manifests)
    _layers(names, manifests)


def _ids() -> list[str]:
    """Those in the address, once each."""
    return list(dict.fromkeys(re.findall(r"[0-9a-fA-F-]{32,36}", st.query_params.get("ids", ""))))


def _tables(names: Sequence[str], manifests: Sequence[Manifest]) -> None:
    st.subheader("What was done differently", anchor=False)
    settings = comparison.settings(manifests)
    if settings:
        _table(names, settings)
    else:
        st.caption("Nothing: model, recipe and settings are the same.")
    st.subheader("What came of it", anchor=False)
    _table(names, comparison.figures(manifests))
    protocols = {one.report.artifact.protocol_hash for one in manifests if one.report.artifact}
    if len(protocols) > 1:
        st.caption("Perplexities were measured under several protocols; figures on different lines do not compare.")
    _tasks(names, comparison.tasks(manifests))


def _tasks(names: Sequence[str], lines: Sequence[TaskLine]) -> None:
    if not lines:
        return
    st.subheader("Tasks", anchor=False)
    rows = [[parts.escaped(f"{line.name}, {line.metric}"), str(line.rows), *map(_task, line.values)] for line in lines]
    parts.table(["", "Rows", *map(parts.escaped, names)], rows)
    st.caption(
        "Below each figure its difference from the base in points, with the 95 % interval by paired bootstrap over "
        "rows. A task that was measured in several ways has a line for each; they do not compare."
    )


def _task(metric: TaskMetric | None) -> str:
    if metric is None:
        return fmt.ABSENT
    verdict = report.task_badge(metric) if metric.verdict else ""
    difference = (
        f'<br><span class="pare-dim">{report.task_difference(metric)}</span>' if metric.difference is not None else ""
    )
    return f"{fmt.percent(metric.artifact)} {verdict}{difference}"


def _table(names: Sequence[str], lines: Sequence[Line]) -> None:
    rows = [[parts.escaped(line.name), *(_written(line, value) for value in line.values)] for line in lines]
    parts.table(["", *map(parts.escaped, names)], rows)


def _written(line: Line, value: Value) -> str:
    if value is None:
        return fmt.ABSENT
    return parts.escaped(value if isinstance(value, str) else _WRITE[line.unit](value))


def _layers(names: Sequence[str], manifests: Sequence[Manifest]) -> None:
    lines = {name: charts.layer_lines(manifest.report.layers) for name, manifest in zip(names, manifests, strict=True)}
    kinds = sorted({line["kind"] for found in lines.values() for line in found})
    if not kinds:
        return
    st.subheader("Layer by layer", anchor=False)
    kind = st.selectbox("Linears", [_ALL, *kinds], key="compare.kind", width=320)
    drawn = charts.depth_lines(lines, None if kind == _ALL else kind)
    for quantity, title in charts.LAYER_QUANTITIES.items():
        chart = charts.depth_chart(drawn, quantity)
        st.markdown(f"**{title}**")
        if chart is None:
            st.caption("None of them has it.")
        else:
            st.altair_chart(chart, alt=f"{title} of the compared artifacts along the model's depth")


page()
