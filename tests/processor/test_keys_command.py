"""`sidecar keys`: a key is shown once, its hash alone is kept, and the file is never half written."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from processor.cli import app
from processor.keys import load_keys
from processor.keys_command import Grant, add_key
from processor.terminal import settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SIDECAR_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SIDECAR_API_KEYS", str(tmp_path / "made" / "keys.toml"))
    return tmp_path / "made" / "keys.toml"


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def test_a_key_is_printed_once_and_only_its_hash_is_kept(file: Path) -> None:
    made = keys("add", "shop")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert key.startswith("sk-sidecar-")
    assert load_keys(file).holder(key.encode()) == "shop"
    assert key not in file.read_text() + made.stderr + keys("list").output + keys("list", "--json").output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.toml"]


def test_whoever_could_read_the_file_can_read_the_next(file: Path) -> None:
    keys("add", "one")
    file.chmod(0o640)  # the bridge is another user, of this group
    keys("add", "two")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_a_key_allows_is_listed_with_its_tenants_budget(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = file.parent.parent / "catalog.toml"
    catalog.write_text("[budgets.tenants.shop]\ndaily_usd = 5\nhard = true\n")
    monkeypatch.setenv("SIDECAR_CATALOG", str(catalog))
    keys("add", "shop", "--tenant", "shop", "-m", "haiku", "-m", "gemini", "-p", "low", "--rpm", "1200")
    keys("add", "boss", "--operator")
    shop, boss = orjson.loads(keys("list", "--json").stdout)
    assert shop == {
        "name": "shop",
        "tenant": "shop",
        "models": ["haiku", "gemini"],
        "priorities": ["low"],
        "rpm": 1200,
        "operator": False,
        "budget": {"daily_usd": 5.0, "hard": True},
    }
    assert (boss["tenant"], boss["operator"], boss["budget"]) == (None, True, None)
    line = next(line for line in keys("list").stdout.splitlines() if line.startswith("shop"))
    assert line.split() == ["shop", "shop", "haiku,", "gemini", "low", "1,200", "$5.00", "a", "day", "(hard)"]


def test_a_removed_key_is_gone_and_the_rest_of_the_file_stays_as_it_was(file: Path) -> None:
    for name in ("one", "two"):
        keys("add", name)
    file.write_text("# mine\n" + file.read_text().replace("[keys.two]", "[keys.two] # hers"))
    assert keys("remove", "one").exit_code == 0
    assert list(load_keys(file).by_name) == ["two"]
    assert file.read_text().startswith("# mine\n")
    assert "[keys.two] # hers" in file.read_text()


def test_without_a_file_in_the_settings_it_is_in_the_data_folder_and_it_is_said_how_to_use_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDECAR_API_KEYS")
    path = settings().sidecar_data_dir / "keys.toml"
    assert f"set SIDECAR_API_KEYS={path}" in keys("add", "one").stderr
    assert list(load_keys(path).by_name) == ["one"]
    elsewhere = file.parent.parent / "other.toml"
    keys("add", "one", "--file", str(elsewhere))
    assert list(load_keys(elsewhere).by_name) == ["one"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "one"], "has a key one already"),
        (["add", "a b"], "keys.a b: "),
        (["add", "two", "--tenant", "a.b"], "keys.two.tenant: "),
        (["add", "two", "--model", "haikku"], "did you mean haiku"),
        (["remove", "two"], "has no key two: there are one"),
        (["list", "--file", "nowhere.toml"], "`sidecar keys add NAME` makes it"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_changes_nothing(file: Path, arguments: list[str], says: str) -> None:
    keys("add", "one")
    before = file.read_text()
    ended = keys(*arguments)
    assert (ended.exit_code in {1, 2}, ended.stdout, file.read_text()) == (True, "", before)
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_file_that_is_wrong_is_not_written_over(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("[keys.a]\nsha256 = 5\n")
    for command in ("add", "remove"):
        ended = keys(command, "b")
        assert (ended.exit_code, file.read_text()) == (2, "[keys.a]\nsha256 = 5\n")
        assert "keys.a.sha256" in ended.stderr


def test_a_crash_while_it_is_written_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys("add", "one")
    before = file.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ended = keys("add", "two")
    assert (ended.exit_code, file.read_text()) == (1, before)
    assert "No space left on device" in ended.stderr
    assert [path.name for path in file.parent.iterdir()] == ["keys.toml"]


async def test_commands_at_once_lose_no_key(file: Path) -> None:
    names = [f"key-{number}" for number in range(8)]
    await asyncio.gather(*(asyncio.to_thread(add_key, settings(), file, name, Grant()) for name in names))
    assert sorted(load_keys(file).by_name) == names


def test_help_teaches(file: Path) -> None:
    assert "Start with: sidecar keys add" in keys("--help").output
    assert "Example: sidecar keys add" in keys("add", "--help").output
