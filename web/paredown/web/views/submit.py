"""Submit: the form that the methods' own schemas draw, and beside it what the job would need."""

from collections.abc import Mapping

import streamlit as st

from paredown.web import job_fields, parts, plan_panel, recipe_editor, session


def page() -> None:
    parts.heading("Compress a model", "A model, a recipe and, if you like, a budget. The plan says what it takes.")
    methods = {view.method: view for view in session.remembered("methods", 60, session.client().methods)}
    slots: job_fields.Slots = {}
    left, right = st.columns([1.65, 1], gap="large")
    with left:
        job_fields.model(slots)
        st.subheader("Recipe", anchor=False)
        recipe_editor.show(methods, slots)
        st.subheader("Options", anchor=False)
        job_fields.budget(slots)
        job_fields.texts(slots, calibrates=recipe_editor.calibrates(methods))
        job_fields.output(slots, "format", "dtype", "name", "tags")
        job_fields.queue(slots, rehearsal=True)
        job_fields.clear_button()
    found: Mapping[str, str] = {}
    with right, st.container(key="plan-panel"), parts.problems_shown("plan"):
        found = plan_panel.show(methods)
    job_fields.show_at_fields(found, slots)


page()
