"""Dockerfile and compose file against the settings: there is no engine here, so they are read and not run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.config import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
NAMES = {name.upper() for name in Settings.model_fields}


@pytest.fixture
def services() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    found: dict[str, Any] = compose["services"]
    return found


def test_compose_has_broker_redis_sidecar_and_bridge_each_with_a_health_check(services: dict[str, Any]) -> None:
    assert set(services) == {"nats", "redis", "sidecar", "bridge"}
    assert all("healthcheck" in services[name] for name in ("nats", "redis", "bridge"))
    assert "HEALTHCHECK" in DOCKERFILE


def test_every_variable_in_compose_is_a_setting_and_valid(services: dict[str, Any]) -> None:
    environment = services["sidecar"]["environment"]
    assert set(environment) <= NAMES
    settings = Settings.model_validate({name.lower(): value for name, value in environment.items()})
    assert (settings.nats_url, settings.redis_url) == ("nats://nats:4222", "redis://redis:6379/0")


def test_the_bridge_is_started_only_where_it_is_asked_for_and_reachable_from_this_machine_alone(
    services: dict[str, Any],
) -> None:
    """Beyond loopback, as in a container, it wants API keys, which only its user can give."""
    bridge = services["bridge"]
    assert bridge["profiles"] == ["bridge"]
    assert set(bridge["environment"]) <= NAMES
    assert bridge["ports"] == ["127.0.0.1:8001:8001"]
    assert Settings.model_fields["sidecar_port"].default == 8001


@pytest.mark.parametrize("name", ["sidecar", "bridge"])
def test_who_answers_requests_is_given_longer_to_stop_than_its_grace(services: dict[str, Any], name: str) -> None:
    sidecar = services[name]
    assert int(sidecar["stop_grace_period"].removesuffix("s")) > float(sidecar["environment"]["SHUTDOWN_GRACE"])


def test_the_broker_runs_the_shipped_configuration_on_a_volume(services: dict[str, Any]) -> None:
    nats = services["nats"]
    source, target, mode = nats["volumes"][0].split(":")
    assert (ROOT / source / ".").resolve() == ROOT / "nats" / "nats-server.conf"
    assert nats["command"][:2] == ["-c", target]
    assert nats["command"][nats["command"].index("-sd") + 1] == nats["volumes"][1].split(":")[1]
    assert mode == "ro"
    assert all(port.startswith("127.0.0.1:") for port in nats["ports"])


def test_the_image_copies_only_what_exists_and_ends_as_an_ordinary_user() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["sidecar"]
    assert "--require-hashes" in DOCKERFILE


def test_the_images_variables_are_settings() -> None:
    variables = re.findall(r"([A-Z_]+)=", " ".join(re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)))
    assert set(variables) - {"PATH", "PYTHONUNBUFFERED"} <= NAMES
