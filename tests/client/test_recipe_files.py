"""Recipe files: what is meant is read, and every mistake is named by its field."""

from pathlib import Path

import pytest

from paredown.client.recipe_files import BadRecipeFile, parse_recipe, read_recipe_file, with_budget
from paredown.contracts.job import BUDGET_PRESETS, Format


def test_a_whole_file() -> None:
    file = parse_recipe(
        """
        recipe:
          - method: wanda
            pattern: 2:4
          - {method: gptq, bits: 3, group_size: 32}
        calibration: {source: "file:///texts/a.txt", samples: 10, sequence_length: 100}
        evaluation: {samples: 5, speed: no}
        budget: {max_size_ratio: 5e-1}
        format: compressed-tensors
        dtype: bfloat16
        """,
        "r.yaml",
    )
    assert [stage.method for stage in file.recipe] == ["wanda", "gptq"]
    # YAML 1.1 reads 2:4 as 124.
    assert file.recipe[0].model_dump()["pattern"] == "2:4"
    assert (file.calibration.samples, file.evaluation.samples, file.evaluation.speed) == (10, 5, False)
    assert file.budget
    assert file.budget.max_size_ratio == 0.5
    assert file.format is Format.COMPRESSED_TENSORS
    assert file.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipe: [{method: rtn, bits: 7}]", "recipe.0.bits: it should be 2, 3, 4, 5, 6 or 8"),
        ("recipe: [{method: gptq, bitz: 4}]", "recipe.0.bitz: there is no such field"),
        ("recipe: [{method: magic}]", "recipe.0: method 'magic' is unknown; there are 'rtn'"),
        ("recipe: [{bits: 4}]", "recipe.0: a stage needs `method`"),
        ("recipe: []", "recipe: it needs at least one stage"),
        ("recipe: rtn", "recipe: it must be a list"),
        ("calibration: {samples: 1}", "recipe: it is missing"),
        (
            "recipe: [{method: rtn}]\ncalibration: {samples: 0}",
            "calibration.samples: it should be greater than or equal",
        ),
        ("recipe: [{method: rtn}]\nbudget: {}", "budget: a budget needs at least one term"),
        ("recipe: [{method: rtn}, {method: gptq}]", "recipe: rtn and gptq both quantize"),
        ("recipe: [{method: rtn, bits: 4, bits: 3}]", "line 1, column 33 is not YAML: the field bits is there twice"),
        ("recipe: [", "r.yaml, line 1, column 10 is not YAML"),
        ("- method: rtn", "must hold a mapping with `recipe`"),
        ("", "must hold a mapping with `recipe`"),
        ("recipe: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    with pytest.raises(BadRecipeFile) as caught:
        parse_recipe(text, "r.yaml")
    assert says in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(BadRecipeFile) as caught:
        parse_recipe("recipe: [{method: rtn, bits: 7, skip: 3}]\nformat: zip", "r.yaml")
    assert len(str(caught.value).splitlines()) == 4


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadRecipeFile, match=r"cannot be read: No such file"):
        read_recipe_file(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"recipe: \xff")
    with pytest.raises(BadRecipeFile, match=r"not UTF-8"):
        read_recipe_file(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(BadRecipeFile, match=r"larger than"):
        read_recipe_file(tmp_path / "large.yaml")


def test_the_command_lines_budget_goes_over_the_files() -> None:
    file = parse_recipe(
        "recipe: [{method: rtn}]\nbudget: {max_size_ratio: 0.5, max_perplexity_increase: 0.1}", "r.yaml"
    )
    changed = with_budget(file, None, 0.3, None)
    assert changed.budget
    assert (changed.budget.max_size_ratio, changed.budget.max_perplexity_increase) == (0.3, 0.1)
    assert with_budget(file, None, None, None) is file
    with pytest.raises(BadRecipeFile, match=r"max_size_ratio: it should be greater than 0"):
        with_budget(file, None, -1, None)


def test_the_default_budget_is_named_in_a_file_or_on_the_command_line() -> None:
    default = BUDGET_PRESETS["default"]
    assert parse_recipe("recipe: [{method: rtn}]\nbudget: default", "r.yaml").budget == default
    file = parse_recipe("recipe: [{method: rtn}]\nbudget: {max_size_ratio: 0.5}", "r.yaml")
    assert with_budget(file, "default", None, None).budget == default, "in place of the file's own"
    assert with_budget(file, "default", 0.3, None).budget == default.model_copy(update={"max_size_ratio": 0.3})
    with pytest.raises(BadRecipeFile, match="--budget takes default"):
        with_budget(file, "lax", None, None)
    with pytest.raises(BadRecipeFile, match="budget: there is no budget 'lax'"):
        parse_recipe("recipe: [{method: rtn}]\nbudget: lax", "r.yaml")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/texts/a.txt", "a file's is file:// and its full path"),
        ("texts/a.txt", "a file's is file:// and its full path"),
        ("file:///my texts/a.txt", "%20 stands"),
        ("HF://a/b", "in small letters"),
    ],
)
def test_an_address_that_is_none_is_told_how_addresses_are_written(source: str, sentence: str) -> None:
    with pytest.raises(BadRecipeFile, match=r"calibration\.source: ") as raised:
        parse_recipe(f"recipe: [{{method: wanda}}]\ncalibration: {{source: '{source}'}}", "a.yaml")
    assert sentence in str(raised.value)
