"""What is wrong with a draft, as sentences at field paths such as `recipe.0.bits`."""

from pydantic import ValidationError

from paredown.client.errors import PareApiError
from paredown.client.recipe_files import field_path

WHOLE = ""


def of_validation(error: ValidationError) -> dict[str, str]:
    """One sentence for each path; the first one found at a path stays."""
    sentences: dict[str, str] = {}
    for mistake in error.errors(include_url=False):
        path = field_path(mistake["loc"]) if mistake["loc"] else WHOLE
        sentences.setdefault(path, _said(path, mistake["type"]) or _sentence(str(mistake["msg"])))
    return sentences


def of_refusal(error: PareApiError) -> dict[str, str]:
    return {error.field or WHOLE: error.detail}


def _said(path: str, kind: str) -> str | None:
    """Words for what pydantic can only say with a regular expression."""
    if kind not in ("string_pattern_mismatch", "string_too_short"):
        return None
    words = path.split(".")
    if path == "model" or words[-1] == "source":
        return "Write an address with its scheme and without spaces, such as hf://organisation/model."
    if words[-1] == "pattern":
        return "Write N:M, such as 2:4 for two of every four."
    if words[0] == "tags":
        return "A tag starts with a letter or digit and goes on with those and . _ : / or -, 64 at most."
    return None


def _sentence(message: str) -> str:
    text = message.removeprefix("Value error, ").strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
