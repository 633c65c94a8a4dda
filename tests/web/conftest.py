"""Pages run without a browser, against a real API."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import paredown.web
from paredown.core.db import Database
from paredown.core.settings import Settings
from tests.web.house import House, free_port, serve_api

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


@pytest.fixture
def app(api: str, house: House) -> AppTest:
    """The pages as a person sees them who has just signed in."""
    app = AppTest.from_file(str(APP), default_timeout=20).run()
    app.text_input[0].input(house.key)
    app.button[0].click().run()
    assert not app.exception
    return app
