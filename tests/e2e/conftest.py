"""The `pare` command as its users run it: a process of its own, with a home of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import random_llama

TEXT = "builtin://python-docs"
SHORT = f"""
calibration: {{source: "{TEXT}", samples: 4, sequence_length: 64}}
evaluation: {{source: "{TEXT}", samples: 2, sequence_length: 64, speed: false}}
"""


@dataclass(frozen=True)
class Pare:
    """Runs `pare` with a PARE_HOME."""

    home: Path
    environment: dict[str, str]

    def __call__(
        self, *arguments: object, expect: int | None = 0, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert "Traceback" not in result.stderr
        if expect is not None:
            assert result.returncode == expect, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "paredown.client.cli", *(str(argument) for argument in arguments)]

    def json(self, *arguments: object, expect: int | None = 0) -> Any:
        return json.loads(self(*arguments, "--json", expect=expect).stdout)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Not below pytest's directories: as root, PostgreSQL and the engine run as users who may not pass those."""
    directory = Path(tempfile.mkdtemp(prefix="pare-e2e-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pare(home: Path) -> Pare:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARE_")}
    environment |= {"PARE_HOME": str(home / "pare"), "PARE_ENGINE_THREADS": "1", "PARE_HEARTBEAT_SECONDS": "0.5"}
    return Pare(home / "pare", environment)


@pytest.fixture(scope="module")
def model(home: Path) -> Path:
    """Where the embedded stack's file:// may read."""
    return random_llama(home / "pare" / "models" / "tiny", blocks=3)


@pytest.fixture(scope="module")
def recipes(home: Path) -> Path:
    directory = home / "recipes"
    directory.mkdir()
    for name, stage in {
        "rtn": "{method: rtn, bits: 4, group_size: 64}",
        "gptq": "{method: gptq, bits: 4, group_size: 64}",
        "wanda": "{method: wanda, sparsity: 0.5}",
    }.items():
        (directory / f"{name}.yaml").write_text(f"recipe: [{stage}]{SHORT}")
    return directory
