"""Every page, empty and full, wide and narrow, with and without the service behind it."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect
from tests.browser.conftest import NARROW, WIDE, OpenWindow
from tests.web.house import MODEL, House

from paredown.contracts.prices import PriceBook
from paredown.core import jobs, prices
from paredown.dispatcher.searching import advance

# slow: on two cores a page is sometimes still redrawn when the next click comes, and a test then waits in vain. The
# whole way through the pages (test_flow) is in the ordinary suite.
pytestmark = [pytest.mark.browser, pytest.mark.slow]

sizes = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])


@sizes
def test_pages_without_data_say_what_to_do(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    visitor = open_window(size)
    visitor.page.goto(visitor.site.url)
    visitor.settle()
    visitor.picture("sign-in")
    visitor.check()
    visitor.sign_in(house.key)
    for name, hint in (
        ("Submit", "Choose a model"),
        ("Jobs", "No job yet"),
        ("Sweeps", "No sweep yet"),
        ("Searches", "No search yet"),
        ("Trade-offs", "Nothing to compare yet"),
        ("Catalogue", "The catalogue is empty"),
        ("Calibrations", "No calibration yet"),
        ("Prices", "Instance types"),
    ):
        visitor.visit(name)
        expect(visitor.page.get_by_text(hint).first).to_be_visible()
        visitor.picture(f"empty-{name.lower()}")
        visitor.check()


@sizes
def test_the_trade_offs_of_one_artifact(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    house.finish(name="the only one", budget={"max_perplexity_increase": 0.2})
    visitor = open_window(size)
    visitor.sign_in(house.key, "/trade-offs")
    visitor.see_chart()
    expect(visitor.page.get_by_text("2 of 2 are on the front")).to_be_visible()
    visitor.picture("trade-offs-one")
    visitor.check()
    for name, button, start in (("png", "PNG", b"\x89PNG"), ("svg", "SVG", b"<svg"), ("csv", "CSV", b"id,name")):
        with visitor.page.expect_download() as download:
            visitor.page.get_by_role("button", name=button, exact=True).click()
        assert download.value.suggested_filename == f"trade-offs.{name}"
        assert download.value.path().read_bytes().startswith(start)


@sizes
def test_prices_and_what_they_say_of_an_artifact(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    artifact = house.finish(name="the only one")
    with house.database.transaction() as session:
        for_serving = {"device": "cpu", "currency": "USD", "as_of": "2026-11-29"}
        items = [
            {"name": "m7i.xlarge", "memory_bytes": 16 * 10**9, "price_per_hour": 0.2016, **for_serving},
            {"name": "t3.small", "memory_bytes": 2 * 10**9, "price_per_hour": 0.0208, **for_serving},
        ]
        prices.replace(session, house.project, PriceBook.model_validate({"items": items}))
    visitor = open_window(size)
    visitor.sign_in(house.key, "/prices")
    expect(visitor.page.get_by_role("button", name="Save")).to_be_visible()
    visitor.picture("prices")
    visitor.check()
    other = open_window(size)
    other.sign_in(house.key, f"/artifact?id={artifact}")
    other.page.get_by_role("tab", name="Use it").click()
    expect(other.page.get_by_text("t3.small, 2.00 GB").first).to_be_visible()
    other.picture("serving")
    other.check()


@sizes
def test_artifacts_side_by_side(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    made = [str(item) for item in house.fill(6)]
    visitor = open_window(size)
    visitor.sign_in(house.key, f"/compare?ids={','.join(made)}")
    expect(visitor.page.get_by_text("What was done differently")).to_be_visible()
    visitor.see_chart()
    visitor.picture("compare")
    visitor.check()
    visitor.visit("Catalogue")
    chosen = visitor.page.get_by_role("combobox", name="Compare")
    chosen.click()
    for number in (0, 1):
        visitor.page.get_by_role("option", name=f"run {number}").click()
    visitor.page.keyboard.press("Escape")
    visitor.settle()
    visitor.page.get_by_role("link", name="Compare").click()
    expect(visitor.page.get_by_text("What came of it", exact=True)).to_be_visible()
    visitor.check()


@sizes
def test_pages_full_of_work(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    artifacts = house.fill(200)
    house.fail(name="failed")
    running = house.start(name="is being compressed", tags=["nightly"])
    house.queue(name="waits for its turn")
    with house.database.transaction() as session:
        finished, _ = jobs.list_jobs(session, house.project, states=("succeeded",), after=None, limit=1)
    visitor = open_window(size)
    visitor.sign_in(house.key, "/jobs")
    expect(visitor.page.get_by_text("is being compressed")).to_be_visible()
    expect(visitor.page.get_by_text("block 12 of 30")).to_be_visible()
    visitor.picture("jobs")
    visitor.check()
    visitor.page.get_by_role("button", name="Load 25 more").click()
    expect(visitor.page.locator(".pare-row")).to_have_count(50)

    visitor.page.get_by_text("is being compressed").click()
    expect(visitor.page.get_by_role("progressbar")).to_be_visible()
    assert str(running.job.id) in visitor.page.url
    visitor.settle()
    visitor.picture("job-running")
    visitor.check()

    visitor.visit("Trade-offs")
    visitor.see_chart()
    visitor.picture("trade-offs")
    visitor.check()
    visitor.page.get_by_text("Decode speed", exact=True).first.click()
    visitor.settle()
    visitor.see_chart()
    visitor.picture("trade-offs-speed")
    visitor.check()

    visitor.visit("Catalogue")
    expect(visitor.page.locator(".pare-row")).to_have_count(25)
    visitor.picture("catalogue")
    visitor.check()

    # Deep links: a fresh window, straight to the page.
    for path, name in ((f"/artifact?id={artifacts[-1]}", "artifact"), (f"/job?id={finished[0].id}", "job-finished")):
        other = open_window(size)
        other.sign_in(house.key, path)
        expect(other.page.get_by_role("heading", name="Error of each layer")).to_be_visible()
        other.see_chart()
        other.picture(name)
        other.check()


@sizes
def test_a_report_with_tasks_domains_and_refusal(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    evaluation = {
        "tasks": [{"name": name, "source": "file:///rows.jsonl"} for name in ("lambada", "blimp", "truthfulqa_mc1")],
        "domains": [{"name": name, "source": "file:///law.txt"} for name in ("German", "law")],
        "refusal": True,
    }
    artifact_id = house.finish(evaluation=evaluation, budget={"max_task_drop": 0.05}, name="measured")
    visitor = open_window(size)
    visitor.sign_in(house.key, f"/artifact?id={artifact_id}")
    tasks = visitor.page.get_by_role("heading", name="Tasks")
    expect(tasks).to_be_visible()
    visitor.page.get_by_text("BLiMP: all figures").click()
    expect(visitor.page.get_by_text("Artifact refuses")).to_be_attached()
    visitor.settle()
    tasks.scroll_into_view_if_needed()
    visitor.picture("report-tasks")
    visitor.check()


@sizes
def test_without_the_service_every_page_is_one_sentence(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    visitor = open_window(size)
    visitor.sign_in(house.key)
    api()
    for name in ("Jobs", "Trade-offs", "Catalogue"):
        visitor.visit(name)
        expect(visitor.page.get_by_text("does not answer")).to_have_count(1)
        visitor.check()
    visitor.picture("away")
    expect(visitor.page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_stranger_without_the_service_is_told_so(open_window: OpenWindow) -> None:
    visitor = open_window()
    visitor.page.goto(visitor.site.url + "/jobs")
    visitor.page.get_by_label("API key").fill("pare_any_key")
    visitor.page.get_by_role("button", name="Sign in").click()
    expect(visitor.page.get_by_text("does not answer")).to_be_visible()
    visitor.check()


def test_input_outlives_other_pages(open_window: OpenWindow, house: House, api: Callable[[], None]) -> None:
    visitor = open_window()
    visitor.sign_in(house.key)
    page = visitor.page
    model = page.get_by_role("combobox", name="Model address")
    model.fill(MODEL)
    model.press("Enter")
    visitor.settle()
    damping = page.get_by_role("spinbutton", name="Damping")
    damping.fill("0.07")
    damping.press("Enter")
    visitor.settle()
    page.get_by_role("button", name="Wanda").click()
    expect(page.get_by_role("spinbutton", name="Sparsity")).to_have_value("0.5")
    expect(page.get_by_text("put wanda first").first).to_be_visible()
    page.locator(".st-key-draft-move-2--1 button").click()
    expect(page.get_by_text("put wanda first")).to_have_count(0)
    visitor.visit("Catalogue")
    visitor.visit("Submit")
    expect(page.get_by_role("spinbutton", name="Damping")).to_have_value("0.07")
    expect(page.get_by_role("spinbutton", name="Sparsity")).to_have_value("0.5")
    expect(page.get_by_role("combobox", name="Model address")).to_have_value(MODEL)
    visitor.check()


@sizes
def test_sweeps_and_searches(
    open_window: OpenWindow, house: House, api: Callable[[], None], size: tuple[int, int]
) -> None:
    sweep = house.sweep(*([{"method": "gptq", "bits": bits}] for bits in (3, 4, 5, 6, 8)), name="gptq by bits")
    for perplexity in (31.0, 23.6, 22.0):
        house.finish_claim(house.take(), perplexity)
    house.take()
    search = house.search(max_trials=2, survivors=2, parallel=1, name="at most 60 %")
    for perplexity in (23.6, 31.0, 23.0, 30.0):
        advance(house.database)
        # The sweep's last job is due as well.
        house.finish_claim(house.take(), perplexity)
    advance(house.database)
    visitor = open_window(size)
    for kind, item in (("sweep", sweep), ("search", search)):
        visitor.sign_in(house.key, f"/{kind}?id={item}")
        visitor.see_chart()
        visitor.picture(kind)
        visitor.check()
    for name, text in (("Sweeps", "gptq by bits"), ("Searches", "at most 60 %")):
        visitor.visit(name)
        expect(visitor.page.get_by_text(text).first).to_be_visible()
        visitor.picture(name.lower())
        visitor.check()
    visitor.sign_in(house.key, "/new-search")
    expect(visitor.page.get_by_text("Recipes to try")).to_be_visible()
    visitor.picture("new-search")
    visitor.check()
