"""Settings: under the names users have, each wrong one named."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from pydantic import ValidationError

from processor.config import Settings, shown
from processor.log import configure_logging
from processor.service import configured_providers
from providers.groq import GroqProvider
from tests.conftest import make_settings


def test_the_names_and_defaults_that_users_have() -> None:
    settings = make_settings()
    assert (settings.max_workers, settings.request_timeout, settings.max_retries) == (10, 30, 3)
    assert (settings.sidecar_port, settings.connection_pool_size, settings.rate_limit_buffer) == (8001, 20, 0.1)
    assert (settings.default_model, settings.cache_ttl, settings.cache_max_size) == ("haiku", 3600, 1000)


def test_the_environment_wins_over_the_file_and_empty_counts_as_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("MAX_WORKERS=3\nGROQ_API_KEY=from-file\nUNRELATED=1\n")
    monkeypatch.setenv("MAX_WORKERS", "7")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    settings = Settings()
    assert settings.max_workers == 7
    assert settings.groq_api_key is not None
    assert settings.anthropic_api_key is None


def test_a_key_shows_nowhere() -> None:
    settings = make_settings(anthropic_api_key="sk-secret", sidecar_api_keys="k1")
    assert "sk-secret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_a_url_is_shown_without_its_password() -> None:
    url = "nats://me:s3cret@one:4222,nats://t0ken@two:4222,nats://three:4222"
    assert shown(url) == "nats://one:4222,nats://two:4222,nats://three:4222"
    assert "s3cret" not in repr(make_settings(nats_url=url, redis_url="redis://:s3cret@cache/0"))


def test_a_traceback_on_the_terminal_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(make_settings(log_format="console"))
    try:
        key = "sk-" + "secret"
        raise ValueError(len(key))
    except ValueError:
        structlog.get_logger("test").exception("failed")
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "ValueError: 9" in said
    assert "sk-secret" not in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_workers": 0},
        {"rate_limit_buffer": 1},
        {"log_level": "loud"},
        {"nats_port": -1},
        {"groq_base_url": "http://x:abc"},
    ],
)
def test_a_value_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_settings(**wrong)


def test_a_home_directory_is_written_as_people_write_it() -> None:
    assert make_settings(sidecar_data_dir="~/x").sidecar_data_dir == Path.home() / "x"


def test_reply_prefixes_are_a_list_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLY_PREFIXES", "app.answers., other.")
    assert make_settings().reply_prefixes == ("app.answers.", "other.")


@pytest.mark.parametrize("prefix", ["$JS.", "llm.request.", "_INBOX.", "app", "a.*.", "a.>"])
def test_a_reply_prefix_opens_nothing_of_ours_or_the_servers(prefix: str) -> None:
    with pytest.raises(ValidationError):
        make_settings(reply_prefixes=prefix)


@pytest.mark.parametrize("address", ["nonsense", "redis://:secret@host:port/0", "http://host"])
def test_a_redis_address_that_is_none_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ValidationError, match="redis://host:port/0") as refused:
        make_settings(redis_url=address)
    assert "secret" not in str(refused.value.errors(include_input=False))


def test_a_vendor_has_a_connection_for_each_call_that_may_be_out() -> None:
    assert make_settings(max_workers=50).calls_at_once == 50
    assert make_settings(max_workers=50, hedge_critical=True).calls_at_once == 100
    groq = configured_providers(make_settings(max_workers=50, groq_api_key="k")).providers["groq"]
    assert isinstance(groq, GroqProvider)
    assert groq.endpoint.connections == 50


def test_web_pages_are_named_by_their_origin() -> None:
    settings = make_settings(sidecar_cors_origins="https://app.example.org, http://localhost:3000,http://[::1]:5173")
    assert settings.sidecar_cors_origins == (
        "https://app.example.org",
        "http://localhost:3000",
        "http://[::1]:5173",
    )


@pytest.mark.parametrize(
    "origin", ["null", "example.org", "https://example.org/", "https://*.example.org", "https://a b", "*"]
)
def test_what_is_no_origin_is_refused_and_every_page_without_keys(origin: str) -> None:
    with pytest.raises(ValidationError, match="sidecar_cors_origins"):
        make_settings(sidecar_cors_origins=origin)


def test_with_keys_every_page_may_be_let_in() -> None:
    assert make_settings(sidecar_cors_origins="*", sidecar_api_keys="one").sidecar_cors_origins == ("*",)


def test_keys_are_a_list_or_a_file(tmp_path: Path) -> None:
    assert make_settings(sidecar_api_keys="~/keys.toml").api_keys_file == Path.home() / "keys.toml"
    assert make_settings(sidecar_api_keys="one,two").api_keys_file is None
    assert make_settings().api_keys_file is None
