"""Who is signed in, and what this browser session has asked the API already.

The key lives in Streamlit's session state, in this server's memory, and nowhere else: a reload signs out. Where the
operator sets PARE_WEB_AUTOLOGIN=1 (the embedded stack does, which listens on this machine only), the key that the
`pare` command would use signs everybody in.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar, cast

import streamlit as st

from paredown.client.client import Page, PareClient
from paredown.client.credentials import find_credentials
from paredown.client.errors import UNREACHABLE, PareApiError
from paredown.contracts.access import Me

T = TypeVar("T")

# Long enough for the slowest plan (a model's configuration fetched from far away), short enough to stay a page.
TIMEOUT_SECONDS = 30.0
# Somebody waits at the page, and a live list asks again by itself: it says soon that the service is away.
TRIES = 2
_CLIENT, _ME, _CACHE = "session.client", "session.me", "session.cache"
_NOTICE, _SIGNED_OUT = "session.notice", "session.signed_out"


def api_url() -> str:
    """The API as this server reaches it."""
    if url := os.environ.get("PARE_API_URL"):
        return url.rstrip("/")
    try:
        return find_credentials().api_url.rstrip("/")
    except PareApiError:
        return "http://127.0.0.1:8000"


def public_api_url() -> str:
    """The API as people reach it, for commands that they copy."""
    return os.environ.get("PARE_PUBLIC_URL", api_url()).rstrip("/")


def sign_in(key: str) -> None:
    """Raises PareApiError: the key is bad, or the service is away."""
    client = PareClient(api_url(), key.strip(), TIMEOUT_SECONDS, TRIES)
    try:
        me = client.me()
    except PareApiError:
        client.close()
        raise
    st.session_state[_CLIENT], st.session_state[_ME] = client, me
    st.session_state.pop(_SIGNED_OUT, None)


def sign_in_automatically() -> bool:
    """Whether somebody is signed in; with the operator's leave, and until signing out, that is so without asking.

    Raises PareApiError.
    """
    if signed_in():
        return True
    if os.environ.get("PARE_WEB_AUTOLOGIN") != "1" or _SIGNED_OUT in st.session_state:
        return False
    sign_in(find_credentials().api_key)
    return True


def sign_out(notice: str | None = None) -> None:
    client = cast("PareClient | None", st.session_state.pop(_CLIENT, None))
    if client:
        client.close()
    for name in list(st.session_state):
        del st.session_state[name]
    st.session_state[_SIGNED_OUT] = True
    if notice:
        st.session_state[_NOTICE] = notice


def take_notice() -> str | None:
    """What the sign-in page has to tell, once."""
    return cast("str | None", st.session_state.pop(_NOTICE, None))


def signed_in() -> bool:
    return _CLIENT in st.session_state


def client() -> PareClient:
    return cast(PareClient, st.session_state[_CLIENT])


def me() -> Me:
    return cast(Me, st.session_state[_ME])


def remembered(name: str, seconds: float, load: Callable[[], T]) -> T:
    """`load()`, at most once in `seconds` for this session. Per session, because each key may see different things."""
    cache = cast("dict[str, tuple[float, object]]", st.session_state.setdefault(_CACHE, {}))
    now = time.monotonic()
    if name in cache and now - cache[name][0] < seconds:
        return cast(T, cache[name][1])
    value = load()
    cache[name] = (now, value)
    return value


def families() -> dict[str, str]:
    """Method → the family that it belongs to."""
    return {view.method: view.family.value for view in remembered("methods", 60, client().methods)}


def first(page: Callable[[str | None, int], Page[T]], count: int) -> tuple[list[T], bool]:
    """So many items of a list, by `page(after, limit)`, and whether there are more."""
    items: list[T] = []
    after, has_more = None, True
    while has_more and len(items) < count:
        part = page(after, min(100, count - len(items)))
        items += part.items
        after, has_more = part.after, part.has_more
    return items, has_more


def forget(*names: str) -> None:
    cache = cast("dict[str, tuple[float, object]]", st.session_state.setdefault(_CACHE, {}))
    for name in names or list(cache):
        cache.pop(name, None)


def is_unreachable(error: PareApiError) -> bool:
    """The service or its database is away, as opposed to having said no."""
    return error.code == UNREACHABLE or error.status in (502, 503, 504)
