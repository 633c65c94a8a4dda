"""Recipe files: YAML in, a RecipeFile out, and every mistake as a sentence that names the field."""

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from paredown.contracts.job import BUDGET_PRESETS, Budget, Contract, RecipeFile
from paredown.contracts.recipes import STAGES

MAX_BYTES = 1 << 20
_INTEGER = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """YAML without two traps: `pattern: 2:4` is text here, not 124, and a field written twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _INTEGER]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_INTEGER, re.compile(r"^[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))


Request = TypeVar("Request", bound=Contract)


class BadRecipeFile(ValueError):
    """Names the file and, for each mistake, the field."""


def read_recipe_file(path: Path) -> RecipeFile:
    """Raises BadRecipeFile."""
    return parse_recipe(_text_of(path), str(path))


def read_request(path: Path, contract: type[Request], what: str, **more: Any) -> Request:
    """A whole request, such as a sweep; what is given in `more` goes over the file. Raises BadRecipeFile."""
    origin = str(path)
    content = _mapping(_text_of(path), origin, f"{origin} must hold a mapping: {what}.")
    given = {name: value for name, value in more.items() if value is not None}
    try:
        return contract.model_validate({**content, **given})
    except ValidationError as error:
        raise BadRecipeFile("\n".join([f"{origin} cannot be submitted:", *explain(error)])) from error


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRecipeFile(f"{path} is larger than a recipe file can be (1 MiB).")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadRecipeFile(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadRecipeFile(f"{path} is not UTF-8 text.") from error


def parse_recipe(text: str, origin: str) -> RecipeFile:
    content = _mapping(
        text,
        origin,
        f"{origin} must hold a mapping with `recipe` (a list of stages) and, as you like, `calibration`, "
        "`evaluation`, `budget`, `format` and `dtype`.",
    )
    try:
        return RecipeFile.model_validate(content)
    except ValidationError as error:
        raise BadRecipeFile("\n".join([f"{origin} is not a recipe file:", *explain(error)])) from error


def _mapping(text: str, origin: str, otherwise: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise BadRecipeFile(f"{origin}{place} is not YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise BadRecipeFile(otherwise)
    return content


def with_budget(
    file: RecipeFile, preset: str | None, max_size_ratio: float | None, max_perplexity_increase: float | None
) -> RecipeFile:
    """The command line's budget over the file's own; a preset takes the place of that whole. Raises BadRecipeFile."""
    given = {"max_size_ratio": max_size_ratio, "max_perplexity_increase": max_perplexity_increase}
    terms = {name: value for name, value in given.items() if value is not None}
    if preset is not None and preset not in BUDGET_PRESETS:
        raise BadRecipeFile(f"There is no budget {preset!r}; --budget takes {' or '.join(BUDGET_PRESETS)}.")
    before = BUDGET_PRESETS[preset] if preset is not None else file.budget
    if not terms:
        return file if preset is None else file.model_copy(update={"budget": before})
    try:
        budget = Budget.model_validate({**(before.model_dump() if before else {}), **terms})
    except ValidationError as error:
        raise BadRecipeFile("\n".join(["The budget cannot be taken:", *explain(error)])) from error
    return file.model_copy(update={"budget": budget})


def explain(error: ValidationError) -> list[str]:
    """One line for each mistake: the field's path as one would write it in the file, and what is wrong."""
    mistakes = error.errors(include_url=False)
    stage_is_bad = any(mistake["loc"][:1] == ("recipe",) and len(mistake["loc"]) > 1 for mistake in mistakes)
    lines = []
    for mistake in mistakes:
        if stage_is_bad and mistake["type"] == "too_short":
            continue  # pydantic counts only the good stages; what is wrong with the bad ones stands beside this
        context = mistake.get("ctx", {})
        match mistake["type"]:
            case "extra_forbidden":
                message = "there is no such field"
            case "missing":
                message = "it is missing"
            case "union_tag_not_found":
                message = "a stage needs `method`"
            case "union_tag_invalid":
                message = f"method {context['tag']!r} is unknown; there are {context['expected_tags']}"
            case "tuple_type":
                message = "it must be a list"
            case "too_short":
                message = "it needs at least one stage"
            case _:
                message = str(mistake["msg"]).removeprefix("Value error, ").replace("Input should", "it should", 1)
        lines.append(f"  {field_path(mistake['loc'])}: {message}")
    return lines


def field_path(location: tuple[int | str, ...]) -> str:
    """("recipe", 0, "rtn", "bits") → `recipe.0.bits`: the method that pydantic names is not part of the path."""
    before = (None, *location)
    path = [
        part for part, last in zip(location, before, strict=False) if not (isinstance(last, int) and part in STAGES)
    ]
    return ".".join(str(part) for part in path) or "the file"
