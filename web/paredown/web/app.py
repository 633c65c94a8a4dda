"""Where Streamlit starts: the look, who is signed in, and the list of pages."""

import streamlit as st

from paredown.client.errors import PareApiError
from paredown.web import parts, session


def main() -> None:
    st.set_page_config(page_title="Pare", page_icon=str(parts.ASSETS / "icon.svg"), layout="wide")
    st.html(parts.ASSETS / "style.css")
    st.logo(str(parts.ASSETS / "logo.svg"), icon_image=str(parts.ASSETS / "icon.svg"), size="large")
    state = "problem"
    with parts.problems_shown("sign-in"):
        state = "known" if session.sign_in_automatically() else "unknown"
    # Whoever comes, all pages are there, so that an address with an id survives signing in.
    page = st.navigation(_pages(), position="sidebar" if state == "known" else "hidden")
    if state == "known":
        st.set_page_config(page_title=f"{page.title} · Pare")
        _account()
        with parts.problems_shown("page"):
            page.run()
    elif state == "unknown":
        with parts.problems_shown("key"):
            _ask_for_key()


def _pages() -> dict[str, list[st.Page]]:
    """Their files lie in views/, not pages/: a directory of that name beside app.py makes Streamlit run them by itself,
    past this file and its sign-in."""
    return {
        "Work": [
            st.Page(parts.SUBMIT, title="Submit", icon=":material/add_circle:", url_path="submit", default=True),
            st.Page(parts.JOBS, title="Jobs", icon=":material/list_alt:", url_path="jobs"),
            _hidden(parts.JOB, "Job", ":material/monitoring:", "job"),
            st.Page(parts.SWEEPS, title="Sweeps", icon=":material/grid_view:", url_path="sweeps"),
            _hidden(parts.SWEEP, "Sweep", ":material/grid_on:", "sweep"),
            st.Page(
                parts.NEW_SWEEP, title="New sweep", icon=":material/add:", url_path="new-sweep", visibility="hidden"
            ),
            st.Page(parts.SEARCHES, title="Searches", icon=":material/travel_explore:", url_path="searches"),
            _hidden(parts.SEARCH, "Search", ":material/search:", "search"),
            st.Page(
                parts.NEW_SEARCH, title="New search", icon=":material/add:", url_path="new-search", visibility="hidden"
            ),
        ],
        "Results": [
            st.Page(parts.TRADE_OFFS, title="Trade-offs", icon=":material/scatter_plot:", url_path="trade-offs"),
            st.Page(parts.CATALOGUE, title="Catalogue", icon=":material/inventory_2:", url_path="catalogue"),
            _hidden(parts.ARTIFACT, "Artifact", ":material/deployed_code:", "artifact"),
            st.Page(parts.CALIBRATIONS, title="Calibrations", icon=":material/dataset:", url_path="calibrations"),
            st.Page(parts.PRICES, title="Prices", icon=":material/payments:", url_path="prices"),
            _hidden(parts.COMPARE, "Compare", ":material/compare:", "compare"),
        ],
    }


def _hidden(file: str, title: str, icon: str, url_path: str) -> st.Page:
    """A page that others lead to."""
    return st.Page(file, title=title, icon=icon, url_path=url_path, visibility="hidden")


def _ask_for_key() -> None:
    _, middle, _ = st.columns([1, 1.4, 1])
    with middle:
        st.space("large")
        st.title("Sign in to Pare", anchor=False)
        notice = session.take_notice()
        if notice:
            st.warning(notice, icon=":material/key_off:")
        with st.form("sign-in"):
            key = st.text_input("API key", type="password", placeholder="pare_…", autocomplete="current-password")
            pressed = st.form_submit_button("Sign in", type="primary", width="stretch")
        st.caption(
            "The key says which project you work in. It stays in this session's memory and is gone when you reload. "
            "`pare keys create` makes one."
        )
        if pressed:
            if not key.strip():
                st.error("Write your API key.", icon=":material/key:")
                return
            try:
                session.sign_in(key)
            except PareApiError as error:
                if error.status != 401:
                    raise
                st.error("This key is not accepted: it is mistyped, expired or revoked.", icon=":material/key_off:")
                return
            st.rerun()


def _account() -> None:
    with st.sidebar, st.container(key="account", gap="small"):
        me = session.me()
        st.caption(f"Project **{parts.plain(me.project)}**  \nKey {parts.plain(me.key_name)}")
        st.button("Sign out", icon=":material/logout:", on_click=session.sign_out, type="tertiary", key="sign-out")


main()
