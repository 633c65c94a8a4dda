"""Side by side: only what differs of the settings, and no two figures on a line that do not compare."""

from uuid import uuid4

from tests.client.conftest import make_manifest

from paredown.client import comparison
from paredown.contracts.artifact import Manifest
from paredown.contracts.job import content_hash
from paredown.contracts.recipes import Gptq, Rtn


def manifest(**changes: object) -> Manifest:
    return make_manifest(uuid4(), {"model.safetensors": b"x"}, None).model_copy(update=changes)


def test_only_what_differs_is_told() -> None:
    lines = {line.name: line.values for line in comparison.settings([manifest(), manifest(recipe=(Rtn(bits=3),))])}
    assert lines == {"stage 1 · bits": ("4", "3")}
    assert comparison.settings([manifest(), manifest()]) == []


def test_what_only_one_recipe_has_is_absent_from_the_other() -> None:
    lines = comparison.settings([manifest(recipe=(Rtn(),)), manifest(recipe=(Gptq(),))])
    values = {line.name: line.values for line in lines}
    assert values["stage 1 · method"] == ("rtn", "gptq")
    assert values["stage 1 · damping"] == (None, str(Gptq().damping))
    assert "stage 1 · bits" not in values


def test_perplexities_of_two_protocols_are_two_lines() -> None:
    one, two = manifest(), manifest()
    assert one.report.artifact
    protocol = one.report.artifact.protocol.model_copy(update={"samples": 9})
    hashed = content_hash(protocol.model_dump(mode="json"))
    measured = one.report.artifact.model_copy(
        update={"protocol": protocol, "protocol_hash": hashed, "perplexity": 30.0}
    )
    other = two.model_copy(update={"report": two.report.model_copy(update={"artifact": measured})})

    def values(unit: str, *manifests: Manifest) -> list[tuple[object, ...]]:
        return [line.values for line in comparison.figures(manifests) if line.unit == unit]

    assert values("perplexity", one, two) == [(22.0, 22.0)]
    assert values("perplexity", one, other) == [(22.0, None), (None, 30.0)]
    assert [value.count(None) for value in values("change", one, other)] == [1, 1], "nor do their rises compare"


def test_a_figure_that_nobody_has_is_no_line() -> None:
    names = [line.name for line in comparison.figures([manifest(), manifest()])]
    assert "Size" in names
    assert "Decode speed" not in names
