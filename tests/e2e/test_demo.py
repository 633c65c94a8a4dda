"""`pare demo` on the real model, as a newcomer runs it."""

import json

import pytest
from tests.e2e.conftest import Pare

# The demo's own limit is the one that counts.
pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(2000)]


def test_the_demo_ends_as_it_promises(pare: Pare) -> None:
    environment = {name: value for name, value in pare.environment.items() if name != "PARE_ENGINE_THREADS"}
    demo = Pare(pare.home, environment)
    try:
        result = demo("demo", "--json", timeout=1800)
        told = json.loads(result.stdout)
        assert [job["state"] for job in told["jobs"]] == ["succeeded", "succeeded", "succeeded", "rejected"]
        perplexities = {point["artifact_id"]: point["perplexity"] for point in told["front"]["points"]}
        rtn, gptq, wanda, three_bits = (perplexities[job["artifact_id"]] for job in told["jobs"])
        assert perplexities[None] < gptq < rtn < three_bits
        assert perplexities[None] < wanda
        assert all(demo.json("status")["parts"][name]["running"] for name in ("api", "worker", "web"))
    finally:
        demo("down")
