"""The models that installed packages carry: what a machine without a network can compress."""

from functools import lru_cache
from pathlib import Path

from paredown.contracts.service import ModelEntry
from paredown.core.errors import PareError
from paredown.core.settings import Settings
from paredown.core.sources import describe
from paredown.core.sources.local import package_directory


def packaged_models(settings: Settings) -> list[ModelEntry]:
    """One entry for each GGUF file of the packages that an operator allows; packages that are absent give none."""
    entries = []
    for package in settings.allowed_packages:
        try:
            directory = package_directory(package)
        except PareError:
            continue
        for path in sorted(directory.rglob("*.gguf")):
            uri = f"pkg://{package}/{path.relative_to(directory).as_posix()}"
            entries.append(_entry(uri, path, path.stat().st_mtime_ns, tuple(settings.allowed_packages)))
    return entries


@lru_cache(maxsize=64)
def _entry(uri: str, path: Path, _modified: int, packages: tuple[str, ...]) -> ModelEntry:
    """Reads the file's header, so it is remembered for as long as the file stays the same."""
    size_bytes = path.stat().st_size
    try:
        description = describe(uri, Settings(allowed_packages=list(packages)))
    except PareError:
        # One that Pare cannot take is still listed; submitting it says why.
        return ModelEntry(uri=uri, origin="package", size_bytes=size_bytes)
    return ModelEntry(
        uri=uri,
        origin="package",
        revision=description.revision,
        model_type=description.shape.model_type,
        parameters=description.shape.parameters,
        base_bytes=description.shape.base_bytes,
        size_bytes=size_bytes,
    )
