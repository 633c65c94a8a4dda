"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from paredown.client.recipe_files import read_recipe_file, with_budget
from paredown.contracts.alias import SIGN
from paredown.contracts.job import RecipeFile

ModelUri = Annotated[
    str, typer.Argument(help="pkg:// file:// https:// hf:// s3:// or artifact:// address of the model.")
]
RecipePath = Annotated[
    Path,
    typer.Argument(help="YAML file: `recipe` and, as you like, `calibration`, `evaluation`, `budget`, `format`."),
]
BudgetPreset = Annotated[
    str | None,
    typer.Option("--budget", help="Budget: `default`, in place of the recipe file's. The file may say it too."),
]
MaxSizeRatio = Annotated[
    float | None, typer.Option(help="Budget: largest artifact as a share of the base bytes, such as 0.35.")
]
MaxPerplexityIncrease = Annotated[
    float | None, typer.Option(help="Budget: largest rise in perplexity as a fraction, such as 0.05.")
]


def reference_of(text: str) -> str:
    if text.startswith(SIGN):
        return text
    try:
        return str(UUID(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither an artifact's id nor {SIGN} and the name of an alias.") from None


# PareClient.artifact_id says which artifact it stands for.
ArtifactReference = Annotated[
    str, typer.Argument(help="The artifact's id, or @NAME of an alias.", metavar="ARTIFACT", parser=reference_of)
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest so many.")]


def load_recipe(
    path: Path, preset: str | None, max_size_ratio: float | None, max_perplexity_increase: float | None
) -> RecipeFile:
    """The file with the command line's budget over its own. Raises BadRecipeFile."""
    return with_budget(read_recipe_file(path), preset, max_size_ratio, max_perplexity_increase)
