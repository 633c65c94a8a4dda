"""Dense statistics: the jobs of one machine that can share them are given one directory of the cache."""

from typing import Any

from tests.worker.conftest import MakeWorker, Submit

from paredown.core.settings import Settings
from paredown.worker.supervisor import claim_all

DENSE = {"statistics": "dense", "samples": 2, "sequence_length": 64}


def runs(settings: Settings) -> list[list[str]]:
    """For each directory the methods that were given it, in their order."""
    return sorted(file.read_text().split() for file in (settings.cache_dir / "statistics").glob("*/runs"))


def test_every_recipe_on_a_model_is_given_the_same_directory(
    submit: Submit, make_worker: MakeWorker, settings: Settings
) -> None:
    for method in ("gptq", "awq"):
        submit(recipe=[{"method": method, "group_size": 32}], calibration=DENSE)
    # Other tokens, another number type, and a model that a stage makes first: none of these is the same.
    submit(recipe=[{"method": "gptq", "group_size": 32}], calibration={**DENSE, "seed": 1})
    submit(recipe=[{"method": "gptq", "group_size": 32}], calibration=DENSE, dtype="bfloat16")
    pruned: list[dict[str, Any]] = [{"method": "shortgpt", "blocks": 1}, {"method": "gptq", "group_size": 32}]
    submit(recipe=pruned, calibration=DENSE)
    submit(recipe=[{"method": "gptq", "group_size": 32}])
    assert claim_all(make_worker(), "cpu") == 6
    assert runs(settings) == [["gptq"], ["gptq"], ["gptq", "awq"]]


def test_a_cache_without_room_leaves_each_job_its_own(
    submit: Submit, make_worker: MakeWorker, settings: Settings
) -> None:
    submit(recipe=[{"method": "gptq", "group_size": 32}], calibration=DENSE)
    small = settings.model_copy(update={"cache_limit_bytes": 300_000})
    assert claim_all(make_worker(settings=small), "cpu") == 1
    assert runs(settings) == []
