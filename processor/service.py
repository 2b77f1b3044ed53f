"""The composition root: builds a processor out of its parts, runs it, and takes it down in the right order."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

import structlog
from pydantic import SecretStr

from processor.answer import Answerer
from processor.audit import AuditLog
from processor.broker import contract_dir
from processor.bus import Bus
from processor.catalog import Catalog, load_catalog
from processor.config import Settings
from processor.discovery import announce
from processor.ingress import Ingress
from processor.lanes import Lanes
from processor.provision import provision
from processor.replies import Probes, Replies
from processor.worker import Worker
from providers.base import Endpoint, Provider

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Configured:
    """The providers that have what they need, and what each of the others lacks."""

    providers: Mapping[str, Provider]
    missing: Mapping[str, str]


def configured_providers(settings: Settings) -> Configured:
    """Sort the providers by whether they have a key, or for `local` a server or the embedded model.

    Nothing is connected and no SDK imported here; a provider does that at its first call or in `open`.
    """
    from providers.anthropic import AnthropicProvider
    from providers.embedded_model import EmbeddedModel
    from providers.gemini import GeminiProvider
    from providers.groq import GroqProvider
    from providers.local import LocalProvider

    def endpoint(key: SecretStr | None, base_url: str | None, api_version: str | None = None) -> Endpoint:
        return Endpoint(
            api_key=key.get_secret_value() if key else "",
            base_url=base_url,
            api_version=api_version,
            connections=settings.connection_pool_size,
            connect_timeout_s=settings.connect_timeout,
            read_timeout_s=settings.read_timeout,
        )

    found: dict[str, Provider] = {}
    missing: dict[str, str] = {}
    if settings.anthropic_api_key:
        found["anthropic"] = AnthropicProvider(endpoint(settings.anthropic_api_key, settings.anthropic_base_url))
    else:
        missing["anthropic"] = "ANTHROPIC_API_KEY is not set"
    if settings.groq_api_key:
        found["groq"] = GroqProvider(endpoint(settings.groq_api_key, settings.groq_base_url))
    else:
        missing["groq"] = "GROQ_API_KEY is not set"
    if settings.gemini_api_key:
        gemini = endpoint(settings.gemini_api_key, settings.gemini_base_url, settings.gemini_api_version)
        found["gemini"] = GeminiProvider(gemini)
    else:
        missing["gemini"] = "GEMINI_API_KEY is not set"
    if settings.local_base_url:
        found["local"] = LocalProvider(endpoint(settings.local_api_key, settings.local_base_url))
    elif why_not := EmbeddedModel.unavailable():
        missing["local"] = f"LOCAL_BASE_URL is not set, and {why_not}"
    else:
        found["local"] = LocalProvider(endpoint(None, None), EmbeddedModel())
    return Configured(found, missing)


def configured_catalog(settings: Settings) -> Catalog:
    """The catalog that the settings mean. Raises `CatalogError`."""
    own = settings.local_base_url is not None
    return load_catalog(settings.sidecar_catalog, local_server=own, local_model=settings.local_model)


class Processor:
    """A running processor. `stop` may be called from a signal handler; `run` then returns within the grace time."""

    def __init__(
        self, settings: Settings, bus: Bus, providers: Mapping[str, Provider], catalog: Catalog, *, replica: str
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._providers = providers
        self._stopping = asyncio.Event()
        self._audit = AuditLog(bus)
        self._probes = Probes(bus)
        self._lanes = Lanes(bus, settings.max_workers)
        answerer = Answerer(
            providers,
            catalog,
            self._audit,
            default_model=settings.default_model,
            max_retries=settings.max_retries,
            jitter=random.random,
        )
        self._catalog = catalog
        self._worker = Worker(
            bus,
            self._lanes,
            answerer,
            self._audit,
            self._probes,
            slots=settings.max_workers,
            replica=replica,
            prefixes=settings.reply_prefixes,
            enable_streaming=settings.enable_streaming,
        )
        self._ingress = Ingress(
            bus, Replies(bus), self._probes, timeout_s=settings.request_timeout, prefixes=settings.reply_prefixes
        )
        self._replica = replica

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, calling `on_ready` once requests are taken.

        Raises:
            BusClosed: the connection is lost for good (in an exception group).
        """
        background = [
            self._bus.watch(),
            self._lanes.keep_alive(),
            self._worker.stop_abandoned(),
            self._worker.pull(),
        ]
        await self._probes.start()
        cancels = await self._bus.nc.subscribe("llm.cancel.*", cb=self._worker.on_cancel)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in background]
            await self._lanes.start()
            await self._ingress.start()
            service = await announce(self._bus, self._catalog, self._providers.keys(), self._replica)
            warming = tasks.create_task(self._open_providers())
            await self._bus.settle()  # ready means: the server knows our subscriptions
            on_ready()
            if not self._providers:
                log.warning("no provider is configured: every request will fail; `sidecar check` says what is missing")
            log.info("processor ready", replica=self._replica, providers=sorted(self._providers))
            await self._stopping.wait()
            log.info("stopping", running=len(self._worker.running))
            await self._ingress.stop()
            running.pop().cancel()
            await self._lanes.stop()
            await service.stop()
            await self._worker.drain(self._settings.shutdown_grace)
            await cancels.unsubscribe()
            await self._audit.drain()
            for task in (*running, warming):
                task.cancel()

    async def _open_providers(self) -> None:
        """Import the SDKs after readiness, one by one, so that the first request need not wait for them."""
        for name, provider in self._providers.items():
            try:
                await provider.open()
            except Exception as error:  # noqa: BLE001  a vendor's SDK may fail to import in any way
                log.error("provider cannot be opened", provider=name, error=repr(error))


@asynccontextmanager
async def processor(settings: Settings, url: str) -> AsyncIterator[Processor]:
    """Connect to the broker at `url`, provision it, and build a processor on it; closes all of it at the end."""
    replica = f"{socket.gethostname().split('.')[0]}-{secrets.token_hex(3)}"
    catalog = configured_catalog(settings)
    providers = configured_providers(settings).providers
    bus = Bus()
    try:
        await bus.connect(url, settings, name=f"ckcias-sidecar {version('ckcias-sidecar')} {replica}")
        for outcome in await provision(bus.nc, contract_dir()):
            if outcome.state == "created":
                log.info("provisioned", kind=outcome.kind, name=outcome.name)
            for drift in outcome.drift:
                log.warning(
                    "drift", kind=outcome.kind, name=outcome.name, field=drift.field,
                    wanted=drift.wanted, found=drift.found,
                )  # fmt: skip
        yield Processor(settings, bus, providers, catalog, replica=replica)
    finally:
        for provider in providers.values():
            await provider.aclose()
        await bus.close()
