"""Versions of a stage's defaults: what a recipe without them meant stays what it means."""

from paredown.contracts.recipes import Esparse, recipe_hash


def test_a_new_default_needs_the_version_that_it_came_with() -> None:
    assert Esparse().entropy_weight == 1
    for version in (2, "2", 2.0):
        assert Esparse.model_validate({"version": version}).entropy_weight == 0.1
    assert Esparse(version=2).entropy_weight == 0.1
    assert Esparse(version=2, entropy_weight=1).entropy_weight == 1


def test_every_version_and_setting_has_an_identity_of_its_own_that_reads_back() -> None:
    stages = [Esparse(), Esparse(version=2), Esparse(version=2, entropy_weight=1), Esparse(entropy_weight=0.1)]
    assert len({recipe_hash((stage,)) for stage in stages}) == len(stages)
    for stage in stages:
        assert Esparse.model_validate(stage.identity()) == stage
        assert Esparse.model_validate_json(stage.model_dump_json()) == stage
