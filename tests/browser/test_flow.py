"""The main job in a browser: submit from the form, watch it finish, find it on the chart, take it home."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser.conftest import OpenWindow, Visitor
from tests.support.models import random_llama
from tests.web.house import House

from paredown.contracts.job import JobView
from paredown.core import catalogue, jobs
from paredown.core.settings import Settings
from paredown.core.storage import open_store
from paredown.worker.attempt import Worker
from paredown.worker.supervisor import claim_all

pytestmark = pytest.mark.browser

# The engine starts torch in several clean processes, each some seconds on two busy cores.
JOB_MS = 240_000


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    random_llama(root / "tiny")
    return root


@pytest.fixture
def settings(settings: Settings, model_root: Path) -> Settings:
    return settings.model_copy(update={"file_roots": [model_root], "heartbeat_seconds": 0.3})


def only_job(house: House) -> JobView:
    with house.database.transaction() as session:
        (job,), _ = jobs.list_jobs(session, house.project, after=None, limit=5)
    return job


def fill_in(page: Page, model: str) -> None:
    box = page.get_by_role("combobox", name="Model address")
    box.fill(model)
    box.press("Enter")
    for part, samples, length in (("Calibration", "2", "32"), ("Evaluation", "2", "64")):
        page.get_by_text(f"{part}: ").click()
        panel = page.locator(f".st-key-options-{part.lower()}")
        for label, value in (("Samples", samples), ("Sequence length", length)):
            field = panel.get_by_role("spinbutton", name=label)
            field.fill(value)
            field.press("Enter")
            expect(field).to_have_value(value)
    # Random weights have nothing to keep: what the default budget asks for is not theirs to meet.
    page.get_by_text("Budget: what the result must meet").click()
    page.get_by_text("No budget").click()
    page.get_by_text("Output: ").click()
    name = page.get_by_role("textbox", name="Name")
    name.fill("a tiny llama")
    name.press("Enter")


def test_from_the_form_to_the_files(
    open_window: OpenWindow, house: House, api: Callable[[], None], model_root: Path, tmp_path: Path
) -> None:
    visitor = open_window()
    visitor.sign_in(house.key)
    page = visitor.page
    fill_in(page, f"file://{model_root}/tiny")
    expect(page.get_by_text("of the base")).to_be_visible()
    visitor.settle()
    visitor.picture("submit")
    visitor.check()
    page.get_by_role("button", name="Submit job").dblclick()
    expect(page.get_by_text("This form has become a job")).to_be_visible()
    visitor.picture("submitted")
    job = only_job(house)
    assert (job.spec.name, job.recipe_name, job.spec.calibration.samples) == ("a tiny llama", "gptq-4", 2)

    page.get_by_role("link", name="Watch the job").click()
    expect(page.get_by_text("Waits for a worker")).to_be_visible()
    worker = Worker(house.database, open_store(house.settings), house.settings, "worker-1", draining=lambda: False)
    thread = threading.Thread(target=claim_all, args=(worker, "cpu"))
    thread.start()
    try:
        expect(page.get_by_role("progressbar")).to_be_visible(timeout=JOB_MS)
        visitor.picture("watching")
        expect(page.get_by_role("heading", name="Base and artifact")).to_be_visible(timeout=JOB_MS)
    finally:
        thread.join(JOB_MS / 1000)
    assert only_job(house).state == "succeeded"
    expect(page.get_by_text("Succeeded", exact=True)).to_be_visible()
    visitor.settle()
    visitor.picture("finished")
    visitor.check()

    see_on_the_chart(visitor)
    download(visitor, house, tmp_path)


def see_on_the_chart(visitor: Visitor) -> None:
    visitor.visit("Trade-offs")
    points = visitor.page.locator(".mark-symbol.role-mark path")
    expect(points).to_have_count(2)
    visitor.picture("chart")
    visitor.check()
    # A click on a point tells which one it is, and leads to it; the base has no artifact.
    for point in points.all():
        point.click(force=True)
        card = visitor.page.locator(".st-key-point-card")
        expect(card).to_be_visible()
        # The card is there before what it says.
        visitor.settle()
        if card.get_by_text("a tiny llama").count():
            break
        # A second click lets go of it: two points would be compared.
        point.click(force=True)
        expect(card).to_be_hidden()
    visitor.page.get_by_role("link", name="Open the artifact").click()
    expect(visitor.page.get_by_role("heading", name="a tiny llama")).to_be_visible()


def download(visitor: Visitor, house: House, tmp_path: Path) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Use it").click()
    expect(page.get_by_text("AutoModelForCausalLM.from_pretrained").first).to_be_visible()
    expect(page.get_by_text("vllm serve")).to_have_count(0)
    visitor.picture("use-it")
    page.get_by_role("tab", name="Files").click()
    link = page.get_by_role("link", name="model.safetensors")
    expect(link).to_be_visible()
    visitor.picture("files")
    visitor.check()
    with page.expect_download() as downloading:
        link.click()
    target = tmp_path / "model.safetensors"
    downloading.value.save_as(target)
    artifact_id = only_job(house).artifact_id
    assert artifact_id
    with house.database.transaction() as session:
        manifest = catalogue.manifest(session, house.project, artifact_id)
    expected = {file.path: file.sha256 for file in manifest.files}
    assert hashlib.sha256(target.read_bytes()).hexdigest() == expected["model.safetensors"]
