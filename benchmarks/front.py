"""How long the front takes to answer: the API's and the page's time with many artifacts of one model.

    python benchmarks/front.py [--artifacts 200]

A real PostgreSQL, filled through the functions that workers use, with reports as long as those of 30 blocks (208
layers); the API under uvicorn; the page's script as Streamlit runs it, without the browser's own drawing.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import get_args

from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.web import house

import paredown.web
from paredown.client.client import PareClient
from paredown.contracts.artifact import CostAxis
from paredown.core import migrate
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.local import postgres

SECRET = "a secret of the benchmark, 32 characters"
REPEATS = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=int, default=200)
    artifacts = parser.parse_args().artifacts
    directory = Path(tempfile.mkdtemp(prefix="pare-front-"))
    directory.chmod(0o711)
    server = postgres.start(directory / "postgres", durable=False)
    try:
        settings = Settings(
            database_url=server.url, store_url=f"file://{directory}/store", secret=SECRET, log_level="ERROR"
        )
        migrate.upgrade(settings)
        database = Database(settings)
        house.BLOCKS = 52
        filled = house.House.build(database, settings)
        filled.fill(artifacts)
        with house.serve_api(settings, house.free_port()) as url:
            measure(url, filled.key)
        database.close()
    finally:
        postgres.stop(directory / "postgres")
        shutil.rmtree(directory, ignore_errors=True)


def measure(url: str, key: str) -> None:
    with PareClient(url, key) as client:
        for axis in get_args(CostAxis):
            tell(f"GET /v1/models/front, {axis}", lambda axis=axis: client.front(house.MODEL, axis))
        tell("GET /v1/models/fronts", client.fronts)
        tell("GET /v1/artifacts, 100 of them", lambda: client.artifacts_page(limit=100))
    os.environ["PARE_API_URL"], os.environ["PARE_API_KEY"], os.environ["PARE_WEB_AUTOLOGIN"] = url, key, "1"
    app = AppTest.from_file(str(Path(paredown.web.__path__[0]) / "app.py"), default_timeout=60).run()

    def open_page() -> None:
        del app.session_state["session.cache"]
        app.switch_page("views/trade_offs.py").run()
        assert not app.exception
        assert app.get("vega_lite_chart")

    tell("the page Trade-offs, nothing remembered", open_page)
    tell("the same page again", lambda: app.run())


def tell(what: str, work: Callable[[], object]) -> None:
    """Processor time is of API, client and page together, without PostgreSQL's: it says what a busy machine hides."""
    seconds, busy = [], []
    for _ in range(REPEATS):
        started, worked = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    took, longest, processor = (1000 * value for value in (median(seconds), max(seconds), median(busy)))
    print(f"{what:50} median {took:5.0f} ms, longest {longest:5.0f} ms, processor {processor:5.0f} ms")


if __name__ == "__main__":
    main()
