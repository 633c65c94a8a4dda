"""The form is drawn from what the API says of a method."""

import pytest
from pydantic import ValidationError

from paredown.client.errors import PareApiError
from paredown.contracts.job import JobSpec
from paredown.contracts.methods import method_views
from paredown.contracts.recipes import STAGES, Family
from paredown.web import draft, problems
from paredown.web.form import fields, split_words

GPTQ = {field.name: field for field in fields(STAGES["gptq"].model_json_schema())}
WANDA = {field.name: field for field in fields(STAGES["wanda"].model_json_schema())}


@pytest.mark.parametrize("view", method_views(), ids=lambda view: view.method)
def test_every_setting_of_every_method_has_a_field(view):
    asked = {field.name for field in fields(view.settings)}
    settings = set(STAGES[view.method].model_fields) - {"method", "version"}
    # A list that is always empty is nothing to ask for.
    assert asked == settings - ({"skip"} if view.family is Family.WIDTH else set())


@pytest.mark.parametrize("view", method_views(), ids=lambda view: view.method)
def test_fields_carry_the_defaults_of_the_stage(view):
    stage = STAGES[view.method]()
    for field in fields(view.settings):
        default = getattr(stage, field.name)
        assert field.default == (list(default) if isinstance(default, tuple) else default)


def test_literals_are_choices_and_optional_ones_can_be_empty():
    assert GPTQ["bits"].kind == "choice"
    assert GPTQ["bits"].choices == (2, 3, 4, 5, 6, 8)
    assert not GPTQ["bits"].optional
    assert GPTQ["group_size"].choices == (32, 64, 128, 256)
    assert GPTQ["group_size"].optional


def test_lists_of_choices_are_picked_from():
    mixed = {field.name: field for field in fields(STAGES["mixed"].model_json_schema())}
    assert (mixed["choices"].kind, mixed["choices"].choices) == ("several", (2, 3, 4, 5, 6, 8))
    # What a method is named for comes first.
    assert [name for name in mixed if name != "skip"][:2] == ["average_bits", "choices"]
    assert next(name for name in GPTQ if name != "skip") == "bits"


def test_bounds_and_descriptions_come_along():
    assert (GPTQ["damping"].kind, GPTQ["damping"].minimum, GPTQ["damping"].maximum) == ("number", 0, 1)
    assert GPTQ["damping"].help == STAGES["gptq"].model_fields["damping"].description
    assert WANDA["pattern"].kind == "text"
    assert WANDA["pattern"].optional
    assert WANDA["pattern"].example == "2:4"
    assert WANDA["skip"].kind == "list"
    assert GPTQ["symmetric"].kind == "switch"


def test_a_type_without_a_field_is_named():
    with pytest.raises(ValueError, match="shape: no form field"):
        fields({"properties": {"shape": {"type": "object"}}})


def test_lists_are_written_with_spaces_or_commas():
    assert split_words(" *.down_proj, model.layers.0.*\n x ") == ["*.down_proj", "model.layers.0.*", "x"]


def test_what_is_wrong_stands_at_its_field():
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(
            {
                "model": "no address",
                "recipe": [{"method": "wanda", "sparsity": 2, "pattern": "4:2"}],
                "calibration": {"samples": 0},
                "tags": ["fine", "not fine"],
            }
        )
    found = problems.of_validation(caught.value)
    assert found["model"].startswith("Write an address")
    assert found["recipe.0.sparsity"] == "Input should be less than 1."
    assert "N smaller than M" in found["recipe.0.pattern"]
    assert found["calibration.samples"] == "Input should be greater than or equal to 1."
    assert found["tags.1"].startswith("A tag starts")


def test_a_refusal_of_the_service_stands_at_the_field_it_names():
    refused = PareApiError("group_size_unfit", "128 does not divide 576.", status=422, field="recipe.0.group_size")
    assert problems.of_refusal(refused) == {"recipe.0.group_size": "128 does not divide 576."}


def test_an_empty_draft_says_what_to_do_first():
    _, found = draft.checked({"model": "", "recipe": []})
    assert found == {"model": "Choose a model, or write where yours lies."}
