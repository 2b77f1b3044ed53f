"""The settings: from the environment or `.env`, under the names users already have, frozen once read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field, HttpUrl, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def shown(url: str) -> str:
    """A URL, or several with commas between, as it may be printed: without user, password or token."""
    return re.sub(r"(?<=//)[^/,]*@", "", url)


class Settings(BaseSettings):
    """Times in seconds, money in US dollars. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, env_ignore_empty=True
    )

    anthropic_api_key: SecretStr | None = Field(None, description="Turns on Anthropic's models.")
    groq_api_key: SecretStr | None = Field(None, description="Turns on Groq's models.")
    gemini_api_key: SecretStr | None = Field(None, description="Turns on Google's models.")
    anthropic_base_url: str | None = Field(None, description="Another server that speaks Anthropic's API.")
    groq_base_url: str | None = Field(None, description="Another server that speaks Groq's API.")
    gemini_base_url: str | None = Field(None, description="Another server that speaks Gemini's API.")
    gemini_api_version: str | None = Field(None, description="v1 or v1beta; the SDK's default where unset.")
    local_base_url: str | None = Field(
        None, repr=False, description="An OpenAI-compatible server: Ollama, vLLM, llama.cpp."
    )
    local_api_key: SecretStr | None = Field(None, description="Its key, where it wants one.")
    local_model: str | None = Field(None, description="The model's name there.")

    nats_url: str | None = Field(
        None, repr=False, description="The broker; unset: `sidecar up` starts its own on nats_port."
    )
    nats_creds: Path | None = Field(None, description="A NATS credentials file.")
    nats_port: int = Field(4222, ge=0, le=65535, description="Of the embedded broker; 0 takes any free port.")
    sidecar_data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("ckcias-sidecar")),
        description="Where the embedded broker keeps its streams.",
    )
    sidecar_host: str = Field(
        "127.0.0.1",
        description="The HTTP bridge's address; without keys, it has to be a loopback one.",
    )
    sidecar_port: int = Field(8001, ge=0, le=65535, description="The HTTP bridge's port; 0 takes any free port.")
    sidecar_api_keys: SecretStr | None = Field(
        None, description="The bridge's API keys: a list, comma-separated, or a .toml file of `sidecar keys add`."
    )
    sidecar_cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins of web pages that may use the bridge, comma-separated; `*`, with keys only: all."
    )
    sidecar_max_connections: int = Field(
        2000, ge=1, le=1_000_000, description="Connections to one HTTP bridge; more are refused."
    )
    sidecar_catalog: Path | None = Field(None, description="A TOML file laid over the shipped catalog.")
    redis_url: str | None = Field(None, repr=False, description="Shared limits and cache.")

    max_workers: int = Field(10, ge=1, le=1000, description="Requests worked on at once by one processor.")
    critical_workers: int = Field(1, ge=0, le=1000, description="How many of them only critical requests may take.")
    lane_weights: Annotated[tuple[int, int, int, int], NoDecode] = Field(
        (70, 15, 10, 5),
        description="Critical, high, medium, low: a lower lane is sure of its share of the starts; the rest is strict.",
    )
    max_parked: int = Field(
        200, ge=1, le=10_000, description="Requests of one lane that wait for a vendor's limit without a worker."
    )
    connection_pool_size: int = Field(
        20, ge=1, le=1000, description="Connections to one vendor; never fewer than the workers can use at once."
    )
    connect_timeout: float = Field(5.0, gt=0, le=60, description="To reach a vendor.")
    read_timeout: float = Field(60.0, gt=0, le=3600, description="The longest silence of a vendor.")
    first_token_timeout: float = Field(45.0, gt=0, le=3600, description="The longest wait for a stream's first token.")
    token_timeout: float = Field(30.0, gt=0, le=3600, description="The longest wait between two of its tokens.")
    answer_timeout: float = Field(1800.0, gt=0, le=86_400, description="The longest that one whole answer may take.")
    min_tokens_per_second: float = Field(
        1.0, ge=0, le=1000, description="A stream that is slower for 15 s is given up; 0: none is."
    )
    request_timeout: float = Field(30.0, gt=0, le=3600, description="The deadline of an ask that names none.")
    max_retries: int = Field(3, ge=0, le=10, description="Rounds over the candidates after the first.")
    shutdown_grace: float = Field(25.0, ge=0, le=600, description="To finish running requests after SIGTERM.")
    rate_limit_buffer: float = Field(0.1, ge=0, lt=1, description="The share of a limit kept for critical.")
    hedge_critical: bool = Field(
        False, description="Ask a second model too when a critical request's first token is late."
    )
    default_model: str = Field("haiku", description="What `auto` means where no rule applies.")
    reply_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Subject prefixes that Reply-To may name beside inboxes, comma-separated."
    )

    enable_cache: bool = Field(True, description="Answer repeated requests from the cache.")
    cache_ttl: int = Field(3600, ge=1, description="How long an answer stays in the cache.")
    cache_max_size: int = Field(1000, ge=0, description="Answers kept, in memory or in Redis; 0: none.")
    cache_sampled: bool = Field(False, description="Also where a request asks for a temperature above 0.")
    cost_optimization: bool = Field(True, description="false: `auto` chooses by quality alone.")
    enable_streaming: bool = Field(True, description="false: `stream` requests get one whole answer.")
    enable_metrics: bool = Field(True, description="Count for Prometheus.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Of the log on stderr.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal.")
    monthly_budget_alert: float | None = Field(
        None, gt=0, description="Dollars a month, of all tenants: an alert at 80 % and at 100 % of it."
    )
    budget_saving_from: float = Field(
        0.9, ge=0, le=1, description="From this share of a budget on, `auto` prefers cheaper models; 0: never."
    )
    alert_webhook: SecretStr | None = Field(None, description="A URL that gets every alert as a JSON POST.")

    @property
    def calls_at_once(self) -> int:
        """Calls that may be out: a call that waited for a connection would come late to the window it is counted in."""
        return self.max_workers * (2 if self.hedge_critical else 1)

    @property
    def api_keys_file(self) -> Path | None:
        """The file that `sidecar_api_keys` names; None where it lists the keys, or is unset."""
        text = "" if self.sidecar_api_keys is None else self.sidecar_api_keys.get_secret_value().strip()
        return Path(text).expanduser() if text.endswith(".toml") and "," not in text else None

    @field_validator("reply_prefixes", "sidecar_cors_origins", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value

    @field_validator("lane_weights", mode="before")
    @classmethod
    def _weights(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("lane_weights")
    @classmethod
    def _no_lane_starves(cls, value: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        if min(value) < 1:
            raise ValueError("four whole numbers from 1 on, for critical, high, medium and low: 70,15,10,5")
        return value

    @field_validator("reply_prefixes")
    @classmethod
    def _no_open_door(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in value:
            if prefix.startswith(("$", "llm.", "_")) or any(c in prefix for c in "*> ") or not prefix.endswith("."):
                raise ValueError(f"{prefix!r}: a reply prefix ends in a dot, has no wildcard, and is none of ours or $")
        return value

    @field_validator("sidecar_cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for origin in value:
            if origin == "*":
                if info.data.get("sidecar_api_keys") is None:
                    raise ValueError("'*' would let every web page spend your money: set SIDECAR_API_KEYS first")
            elif not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?", origin):
                raise ValueError(f"{origin!r}: an origin is written as https://example.org or http://localhost:3000")
        return value

    @field_validator("anthropic_base_url", "groq_base_url", "gemini_base_url", "local_base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            HttpUrl(value)  # raises with the reason; the text stays as the user wrote it
        return value

    @field_validator("alert_webhook")
    @classmethod
    def _web_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                HttpUrl(value.get_secret_value())
            except ValueError:  # its message would hold the address, and with it its token
                raise ValueError("an address that starts with https:// or http://") from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_address(cls, value: str | None) -> str | None:
        if value is not None:
            from redis.connection import parse_url

            try:
                parse_url(value)  # type: ignore[no-untyped-call]
            except ValueError:  # its message may hold the password
                raise ValueError("redis://host:port/0, rediss://… or unix:///path/of/socket") from None
        return value

    @field_validator("sidecar_data_dir", "sidecar_catalog", "nats_creds")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value
