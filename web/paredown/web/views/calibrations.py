"""Calibrations: the token blocks that jobs drew, newest first, each with the address by which another job takes it."""

import streamlit as st

from paredown.contracts.calibration import CalibrationView
from paredown.web import format as fmt
from paredown.web import parts, session

PAGE_SIZE = 25
_SHOWN = "calibrations.shown"


def page() -> None:
    parts.heading(
        "Calibrations", "The tokens that jobs calibrated on. Name one as a job's source to take the very same."
    )
    shown = int(st.session_state.get(_SHOWN, PAGE_SIZE))
    client = session.client()
    found, has_more = session.first(lambda after, limit: client.calibrations_page(after=after, limit=limit), shown)
    if not found:
        parts.empty_state("No calibration yet. The first job whose methods look at text leaves one.", icon="dataset")
        return
    with st.container(key="list-calibrations", gap=None):
        for calibration in found:
            parts.row(str(calibration.id), _title(calibration), parts.JOB, calibration.job_id, _details(calibration))
            parts.copyable(calibration.uri, None)
    if has_more and st.button(f"Load {PAGE_SIZE} more", key="calibrations-more", icon=":material/expand_more:"):
        st.session_state[_SHOWN] = shown + PAGE_SIZE
        st.rerun()


def _title(calibration: CalibrationView) -> str:
    return f"{calibration.samples} × {calibration.sequence_length} tokens, seed {calibration.seed}"


def _details(calibration: CalibrationView) -> str:
    left_out = calibration.held_out_windows
    held_out = "" if left_out is None else parts.badge(f"{left_out} windows held out", "tag")
    return (
        f'<span class="pare-grow">{parts.mono(calibration.source)}'
        f'<span class="pare-dim"> · {parts.escaped(calibration.model)}</span></span>'
        f'{held_out}<span class="pare-dim pare-end">{fmt.ago(calibration.created_at)}</span>'
    )


page()
