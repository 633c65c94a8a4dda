"""Documentation that cannot fall behind: every code, setting and method is described."""

import re
from pathlib import Path

import pytest

from paredown.contracts.families import MODEL_TYPES
from paredown.contracts.recipes import STAGES
from paredown.core import errors as core_errors
from paredown.core.settings import Pool, Settings
from paredown.engine import errors as engine_errors
from paredown.engine.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def error_codes() -> list[str]:
    codes = set()
    for module, base in ((core_errors, core_errors.PareError), (engine_errors, engine_errors.EngineError)):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base) and isinstance(vars(value).get("code"), str):
                codes.add(value.code)
    return sorted(codes)


@pytest.mark.parametrize("code", error_codes())
def test_every_error_code_is_documented(code: str) -> None:
    assert f"| `{code}` |" in read("errors.md")


def client_codes() -> list[str]:
    """What the command line and the client raise by themselves."""
    sources = [
        path.read_text() for part in ("client", "local") for path in (ROOT / "services/paredown" / part).rglob("*.py")
    ]
    given = r'(?:code=|PareApiError\(\s*|_complain\(ctx, |UNREACHABLE = |_CORRUPT = |_INCOMPLETE = )"([a-z_]+)"'
    return sorted({code for source in sources for code in re.findall(given, source)} - {"internal_error"})


@pytest.mark.parametrize("code", client_codes())
def test_every_code_of_the_command_line_is_documented(code: str) -> None:
    assert f"`{code}`" in read("errors.md")


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_documented(field: str) -> None:
    assert f"`PARE_{field.upper()}`" in read("operations.md")


@pytest.mark.parametrize("field", Pool.model_fields)
def test_every_pool_setting_is_documented(field: str) -> None:
    assert f"`{field}`" in read("operations.md")


@pytest.mark.parametrize("method", STAGES)
def test_every_method_and_its_settings_are_documented(method: str) -> None:
    page = read("methods.md")
    assert f"## `{method}`" in page
    assert STAGES[method].paper in page
    for field in STAGES[method].model_fields:
        assert f"`{field}`" in page


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_type_is_documented_with_its_linears(model_type: str) -> None:
    [row] = [row for row in read("models.md").splitlines() if row.startswith("| `") and f"`{model_type}`" in row]
    prefixes = ("self_attn.", "self_attention.", "attention.", "attn.", "mlp.")
    architecture = ARCHITECTURES[MODEL_TYPES[model_type]]
    groups = architecture.groups + (architecture.experts.groups(1) if architecture.experts else ())
    if "| the same |" not in row:
        for name in (name for group in groups for name in group):
            leaf = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
            assert re.search(rf"[`.]{re.escape(leaf.rpartition('.')[2])}`", row), name


def test_every_dependency_is_explained() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = (
        project.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
        + project.split("[project.optional-dependencies]")[0].split("dependencies = ")[1]
    )
    names = {re.split(r"[\[<>=]", spec)[0] for spec in re.findall(r'"([A-Za-z][^"]*)"', block)}
    page = read("dependencies.md").lower()
    missing = {name for name in names - {"paredown"} if f"`{name.lower()}`" not in page}
    assert missing == set()


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"], ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
