"""Small visible pieces that the pages share. All text that people or models wrote is escaped here."""

import html
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from paredown.client.errors import PareApiError
from paredown.contracts.alias import SIGN
from paredown.contracts.job import JobState
from paredown.contracts.report import Verdict
from paredown.contracts.search import SearchState
from paredown.contracts.sweep import SweepState, SweepView
from paredown.web import session

log = logging.getLogger(__name__)

ASSETS = Path(__file__).with_name("assets")
SUBMIT, JOBS, JOB = "views/submit.py", "views/jobs.py", "views/job.py"
SWEEPS, SWEEP, NEW_SWEEP = "views/sweeps.py", "views/sweep.py", "views/new_sweep.py"
SEARCHES, SEARCH, NEW_SEARCH = "views/searches.py", "views/search.py", "views/new_search.py"
TRADE_OFFS, CATALOGUE, ARTIFACT = "views/trade_offs.py", "views/catalogue.py", "views/artifact.py"
COMPARE, PRICES = "views/compare.py", "views/prices.py"
CALIBRATIONS = "views/calibrations.py"

_ASKED = "parts.asked"
_TONES = {
    JobState.QUEUED: "waiting",
    JobState.RUNNING: "active",
    JobState.SUCCEEDED: "good",
    JobState.REJECTED: "warn",
    JobState.FAILED: "bad",
    JobState.CANCELLED: "dim",
    SweepState.QUEUED: "waiting",
    SweepState.RUNNING: "active",
    SweepState.FINISHED: "good",
    SweepState.CANCELLED: "dim",
    SearchState.EXPLORING: "active",
    SearchState.CONFIRMING: "active",
    SearchState.FINISHED: "good",
    SearchState.CANCELLED: "dim",
    Verdict.PASSED: "good",
    Verdict.MISSED: "warn",
    Verdict.OVERRIDDEN: "active",
}
_VERDICT_WORDS = {
    Verdict.PASSED: "budget met",
    Verdict.MISSED: "budget missed",
    Verdict.OVERRIDDEN: "budget overridden",
}


def source_name(sources: Mapping[str, str], address: str) -> str:
    """A text as a field offers it: a data set of the project by its name too."""
    return f"{sources[address]} ({address})" if address in sources else address


def plain(text: str) -> str:
    """Text for a Markdown label, with Markdown's, Streamlit's and mathematics' signs made harmless."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$:-])", r"\\\1", " ".join(text.split()))


def escaped(text: object) -> str:
    return html.escape(str(text))


def mono(text: object) -> str:
    return f'<span class="pare-mono">{escaped(text)}</span>'


def link(url: str, text: str) -> str:
    """To a file elsewhere; only addresses of the web become links."""
    if not url.startswith(("http://", "https://")):
        return escaped(text)
    return f'<a href="{escaped(url)}" target="_blank" rel="noopener">{escaped(text)}</a>'


def badge(text: str, tone: str = "dim") -> str:
    return f'<span class="pare-badge pare-{tone}">{escaped(text)}</span>'


def state_badge(state: JobState | SweepState | SearchState) -> str:
    return badge(state.value, _TONES[state])


def sweep_counts(view: SweepView) -> str:
    """`3 succeeded, 9 queued`"""
    return ", ".join(f"{view.counts[state]} {state.value}" for state in JobState if view.counts.get(state))


def verdict_badge(verdict: Verdict | None) -> str:
    return badge(_VERDICT_WORDS[verdict], _TONES[verdict]) if verdict else badge("no budget")


def tag_badges(tags: Iterable[str]) -> str:
    return "".join(badge(tag, "tag") for tag in tags)


def alias_badges(names: Iterable[str]) -> str:
    return "".join(badge(f"{SIGN}{name}", "good") for name in names)


def bar(fraction: float) -> str:
    share = min(1.0, max(0.0, fraction))
    return f'<span class="pare-bar"><span style="width:{100 * share:.1f}%"></span></span>'


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A small table; cells are HTML already. It scrolls by itself where it is wider than the page."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    st.html(f'<div class="pare-scroll"><table class="pare-table"><tr>{head}</tr>{body}</table></div>')


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values in a grid; values are HTML already."""
    cells = "".join(f"<div><small>{escaped(name)}</small><span>{value}</span></div>" for name, value in pairs)
    st.html(f'<div class="pare-facts">{cells}</div>')


def row(key: str, title: str, page: str, item_id: object, details: str) -> None:
    """One line of a list: a link to its page, and details as HTML."""
    with st.container(key=f"row-{key}", gap=None):
        st.page_link(page, label=f"**{plain(title)}**", query_params={"id": str(item_id)})
        st.html(f'<div class="pare-row">{details}</div>')


def heading(title: str, about: str) -> None:
    st.title(title, anchor=False)
    st.caption(about)


def pick_or_write(place: DeltaGenerator, label: str, known: Sequence[str], *, key: str, placeholder: str) -> str | None:
    """A filter that suggests what is known, takes anything, stands in the address, and outlives other pages."""
    chosen = st.session_state.get(key) or st.query_params.get(key)
    picked = place.selectbox(
        label,
        list(dict.fromkeys([*known, *([chosen] if chosen else [])])),
        index=None,
        key=key,
        placeholder=placeholder,
        accept_new_options=True,
        bind="query-params",
        persist_state="session",
    )
    return (picked or "").strip() or None


def empty_state(sentence: str, *, page: str | None = None, action: str = "", icon: str = "inbox") -> None:
    """Nothing to show, and what to do about it."""
    with st.container(key="empty-state", border=True, horizontal_alignment="center"):
        st.markdown(f":material/{icon}: {sentence}", width="content")
        if page:
            st.page_link(page, label=f"**{action}**", icon=":material/arrow_forward:")


def show_problem(error: PareApiError, place: str) -> None:
    """A refusal as a sentence; `place` tells apart two of them on one page."""
    if error.status == 401:
        session.sign_out("Your key is no longer accepted. Sign in with another one.")
        st.rerun()
    if session.is_unreachable(error):
        st.error(
            f"Pare's API at `{session.api_url()}` does not answer. Nothing is lost: jobs go on, and this page "
            "comes back with it.",
            icon=":material/cloud_off:",
        )
        st.button("Try again", key=f"try-again.{place}", icon=":material/refresh:", on_click=session.forget)
        return
    sentence = plain(error.detail)
    st.error(f"{sentence}  \n`{error.code}`", icon=":material/error:")
    if error.request_id:
        st.caption(f"Request {plain(error.request_id)}")


@contextmanager
def problems_shown(place: str) -> Iterator[None]:
    """Around everything that talks to the API: whatever goes wrong ends as a sentence on the page."""
    try:
        yield
    except PareApiError as error:
        show_problem(error, place)
    except Exception:
        # The edge of the program: people get a sentence, the log the traceback.
        log.exception("the page failed", extra={"place": place})
        st.error(
            "This page has run into an error of its own; the server's log says which. Reload the page, and report it "
            "if it comes back.",
            icon=":material/error:",
        )


def ask(question: str) -> None:
    """Open a dialog with the next run of the page. It stays open, whatever the page does, until it is answered."""
    st.session_state[_ASKED] = question


def asked() -> str | None:
    return cast("str | None", st.session_state.get(_ASKED))


def answered() -> None:
    st.session_state.pop(_ASKED, None)


def item_id() -> str | None:
    """The id that the address of a job's or artifact's page carries."""
    value = st.query_params.get("id")
    return value if value and re.fullmatch(r"[0-9a-fA-F-]{32,36}", value) else None


def copyable(body: str, language: str | None) -> None:
    st.code(body, language=language, wrap_lines=True)


def json_view(value: Any, label: str = "JSON") -> None:
    with st.expander(label, icon=":material/data_object:"):
        st.json(value, expanded=2)
