"""docker-compose.yml and the Dockerfile, checked without a Docker engine."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from paredown.core.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# One step that only hands volumes to the users below.
ROOT_BY_NEED = {"volumes"}


def env_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_it_follows_the_compose_specification() -> None:
    parsed = compose_spec.PyCompose.from_json(json.dumps(COMPOSE))
    parsed.validate()
    services = {"postgres", "redis", "s3", "api", "dispatcher", "worker", "worker-gpu", "web"}
    assert services <= set(parsed.service_names())


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_and_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    image = service["image"]
    assert "build" in service or re.search(r":\d", image), f"{image} names no version"
    assert service["healthcheck"].get("test") or service["healthcheck"]["disable"]
    for needed in service.get("depends_on", {}):
        assert needed in SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_runs_as_root(name: str) -> None:
    service = SERVICES[name]
    if name in ROOT_BY_NEED:
        assert service["network_mode"] == "none"
    elif "build" in service:
        stage = service["build"]["target"]
        dockerfile = (ROOT / "infra/Dockerfile").read_text()
        body = dockerfile.split(f" AS {stage}\n", 1)[1].split("\nFROM ", 1)[0]
        parent = re.search(rf"FROM (\S+) AS {stage}\n", dockerfile)
        assert "USER 10001" in body or (parent and parent[1] == "worker"), f"{stage} has no USER"
    else:
        assert service["user"] not in ("root", "0")


@pytest.mark.parametrize("name", SERVICES)
def test_every_pare_variable_is_a_setting(name: str) -> None:
    known = {f"PARE_{field.upper()}" for field in Settings.model_fields}
    environment = SERVICES[name].get("environment", {})
    assert {key for key in environment if key.startswith("PARE_")} - known - {"PARE_API_URL"} == set()


def test_every_variable_without_a_default_stands_in_the_example() -> None:
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE_TEXT))
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    assert required <= set(env_example())
    assert set(env_example()) <= used, "the example names a variable that nothing reads"


def test_the_example_makes_valid_settings() -> None:
    pools = env_example()["PARE_POOLS"].strip("'")
    settings = Settings(pools=json.loads(pools))
    assert settings.pools["gpu"].device == "cuda"


def test_published_ports_listen_on_loopback_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "infra/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
