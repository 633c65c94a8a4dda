"""Pages run without a browser, against a real API."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from tests.web.house import House, free_port, serve_api

import paredown.web
from paredown.core.db import Database
from paredown.core.settings import Settings

APP = Path(paredown.web.__path__[0]) / "app.py"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"log_level": "ERROR"})


@pytest.fixture
def house(database: Database, settings: Settings) -> House:
    return House.build(database, settings)


@pytest.fixture
def api(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serve_api(settings, free_port()) as url:
        monkeypatch.setenv("PARE_API_URL", url)
        monkeypatch.delenv("PARE_API_KEY", raising=False)
        monkeypatch.delenv("PARE_WEB_AUTOLOGIN", raising=False)
        yield url


OpenApp = Callable[[], AppTest]


@pytest.fixture
def open_app(api: str) -> Iterator[OpenApp]:
    """Browser sessions that nobody has signed in to."""
    opened: list[AppTest] = []

    def start() -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=20)
        opened.append(app)
        return app.run()

    yield start
    for app in opened:
        if "session.client" in app.session_state:
            app.session_state["session.client"].close()


@pytest.fixture
def app(open_app: OpenApp, house: House) -> AppTest:
    """The pages as a person sees them who has just signed in, at the list of jobs."""
    app = open_app()
    app.switch_page("views/jobs.py").run()
    app.text_input[0].input(house.key)
    app.button[0].click().run()
    assert not app.exception
    assert app.title[0].value == "Jobs"
    return app


@pytest.fixture
def form(app: AppTest) -> AppTest:
    """The form to submit a job."""
    app.switch_page("views/submit.py").run()
    assert not app.exception
    return app
