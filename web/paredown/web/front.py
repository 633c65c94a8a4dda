"""The chart of a front without its controls, for pages about what a sweep or a search has made."""

import streamlit as st

from paredown.client import front_chart
from paredown.contracts.artifact import Front
from paredown.web import session


def chart(front: Front, key: str) -> bool:
    """Whether there was anything to draw."""
    shown = front_chart.points(front, session.families())
    if shown:
        no_budget = front_chart.budget_lines(front, {})
        st.vega_lite_chart(
            spec=front_chart.front_chart(shown, front.cost_axis, no_budget, dark=st.context.theme.type == "dark"),
            key=key,
            alt=f"Perplexity of {len(shown)} models against {front_chart.AXES[front.cost_axis].name.lower()}",
        )
    return bool(shown)
