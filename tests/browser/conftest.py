"""Real pages in a real Chromium, over a real API. Screenshots go to the directory that PARE_SCREENSHOTS names."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.web.house import House, free_port, serve_api

from paredown.core.db import Database
from paredown.core.settings import Settings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A busy machine with two cores draws a page in seconds.
PATIENCE_MS = 30_000
WIDE, NARROW = (1440, 900), (400, 850)
PHONE = "Mozilla/5.0 (Linux; Android 16; Pixel 9) AppleWebKit/537.36 Chrome/156.0.0.0 Mobile Safari/537.36"


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = "no Chromium on PATH; `make browser` installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Site:
    """The web server's address, and the port where it looks for the API."""

    url: str
    api_port: int


@pytest.fixture(scope="session")
def site(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The front end as an operator starts it. Each test brings its own API to the one address it knows."""
    port, api_port = free_port(), free_port()
    log = tmp_path_factory.mktemp("web") / "web.log"
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "paredown.web", "--port", str(port)],
            env=kept | {"PARE_API_URL": f"http://127.0.0.1:{api_port}"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await(f"{url}/_stcore/health", process, log)
        yield Site(url, api_port)
    finally:
        process.terminate()
        process.wait(20)
    # What a page could not handle is logged with its traceback; no test may leave one behind.
    assert "Traceback" not in log.read_text()


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_at = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up_at, log.read_text()
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"log_level": "ERROR", "event_poll_seconds": 0.1})


@pytest.fixture
def house(database: Database, settings: Settings) -> House:
    return House.build(database, settings)


@pytest.fixture
def api(site: Site, settings: Settings) -> Iterator[Callable[[], None]]:
    """Running; calling it stops it."""
    with ExitStack() as stack:
        stack.enter_context(serve_api(settings, site.api_port))
        yield stack.close


@dataclass
class Visitor:
    """A person with a browser window, who notices what should not be there."""

    page: Page
    site: Site
    strangers: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)

    @property
    def is_narrow(self) -> bool:
        size = self.page.viewport_size
        return size is not None and size["width"] < 768

    def sign_in(self, key: str, path: str = "/") -> None:
        self.page.goto(self.site.url + path)
        box = self.page.get_by_label("API key")
        box.fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(box).to_have_count(0)
        self.settle()

    def visit(self, name: str) -> None:
        """Over the menu, as people go, so that the session goes on."""
        if self.page.locator("[data-testid=stSidebar][data-collapsed=true]").count():
            self.page.get_by_test_id("stExpandSidebarButton").click()
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        if self.is_narrow:
            # It covers the page until it is closed.
            expect(self.page.locator("[data-testid=stSidebar][data-collapsed=true]")).to_have_count(1)
        self.settle()

    def settle(self) -> None:
        """Until the page is drawn."""
        expect(self.page.get_by_test_id("stMain")).to_be_visible()
        expect(self.page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
        expect(self.page.get_by_test_id("stSkeleton")).to_have_count(0)

    def see_chart(self) -> None:
        expect(self.page.locator("[data-testid=stVegaLiteChart] .marks").first).to_be_visible()

    def picture(self, name: str) -> None:
        directory = os.environ.get("PARE_SCREENSHOTS")
        if directory:
            Path(directory).mkdir(parents=True, exist_ok=True)
            size = self.page.viewport_size
            assert size
            height = int(self.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight"))
            self.page.set_viewport_size({"width": size["width"], "height": max(size["height"], min(height, 3000))})
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=Path(directory) / f"{name}-{size['width']}.png")
            self.page.set_viewport_size(size)

    def check(self) -> None:
        """No error of the pages' own, nothing wider than the window, nothing from another machine."""
        expect(self.page.get_by_test_id("stException")).to_have_count(0)
        expect(self.page.get_by_text("run into an error of its own")).to_have_count(0)
        too_wide = self.page.evaluate(
            """() => {
                const main = document.querySelector('[data-testid=stMain]');
                const wide = document.documentElement.scrollWidth - window.innerWidth;
                return Math.max(wide, main.scrollWidth - main.clientWidth);
            }"""
        )
        assert too_wide <= 0
        assert self.strangers == []
        assert self.crashes == []


OpenWindow = Callable[..., Visitor]


@pytest.fixture
def open_window(browser: Browser, site: Site) -> Iterator[OpenWindow]:
    opened = []

    def start(size: tuple[int, int] = WIDE) -> Visitor:
        # A narrow window is a phone's: Streamlit goes by the browser's name to close the menu that covers the page.
        device = {"user_agent": PHONE, "is_mobile": True, "has_touch": True} if size == NARROW else {}
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True, **device)
        context.set_default_timeout(PATIENCE_MS)
        opened.append(context)
        visitor = Visitor(context.new_page(), site)

        def note(url: str) -> None:
            if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
                visitor.strangers.append(url)

        visitor.page.on("request", lambda request: note(request.url))
        visitor.page.on("pageerror", lambda error: visitor.crashes.append(str(error)))
        return visitor

    expect.set_options(timeout=PATIENCE_MS)
    yield start
    for context in opened:
        context.close()
