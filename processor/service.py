"""The composition root: builds a processor out of its parts, runs it, and takes it down in the right order."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import SecretStr

from processor.admission import Admission
from processor.alerts import Alerts
from processor.answer import Answerer
from processor.attempt import Attempts
from processor.audit import AuditLog
from processor.backlog import Backlog
from processor.bookkeeper import Bookkeeper
from processor.broker import contract_dir
from processor.budgets import configured as configured_budgets
from processor.bus import Bus
from processor.catalog import Catalog, CatalogError, UnknownModel, load_catalog
from processor.clocks import Clocks
from processor.config import Settings
from processor.discovery import announce
from processor.estimate import Learned
from processor.health import Health
from processor.hints import Hints
from processor.ingress import Ingress
from processor.introspection import MAX_LISTED, Vendors, in_flight
from processor.lanes import Lanes
from processor.ledger import Ledger
from processor.limit_stores import LimitStore, NatsStore, RedisStore, steady_clock
from processor.limits import Limits
from processor.lookout import Lookout
from processor.metrics import Metrics
from processor.prefixes import Prefixes
from processor.provision import provision
from processor.replies import Probes, Replies
from processor.reuse import configured_reuse
from processor.schedule import Schedule
from processor.slots import Slots
from processor.spending import Spending
from processor.subjects import Priority
from processor.webhook import Webhook
from processor.withdraw import Withdrawals
from processor.worker import Worker
from providers.base import Endpoint, Provider

if TYPE_CHECKING:
    from redis.asyncio import Redis

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
            connections=max(settings.connection_pool_size, settings.calls_at_once),
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
    """The catalog that the settings mean. Raises `CatalogError`, for a DEFAULT_MODEL that it lacks too."""
    own = settings.local_base_url is not None
    catalog = load_catalog(settings.sidecar_catalog, local_server=own, local_model=settings.local_model)
    try:
        catalog.resolve(settings.default_model, datetime.now(UTC).date())
    except UnknownModel as error:
        raise CatalogError(f"DEFAULT_MODEL: {error}") from None
    return catalog


def redis_client(url: str) -> Redis:
    """A client that gives up soon: what cannot be shared over Redis is shared over NATS."""
    from redis.asyncio import Redis

    return Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)


class Processor:
    """A running processor. `stop` may be called from a signal handler; `run` then returns within the grace time."""

    def __init__(
        self, settings: Settings, bus: Bus, providers: Mapping[str, Provider], catalog: Catalog, *, replica: str
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._providers = providers
        self._catalog = catalog
        self._replica = replica
        self._stopping = asyncio.Event()
        self._audit = AuditLog(bus)
        self._metrics = Metrics(enabled=settings.enable_metrics)
        self._probes = Probes(bus)
        hook = settings.alert_webhook
        self._alerts = Alerts(bus, replica, Webhook(hook.get_secret_value()) if hook else None)
        self._lanes = Lanes(bus, settings.max_workers)
        self._redis = redis_client(settings.redis_url) if settings.redis_url else None
        stores: list[LimitStore] = [NatsStore(bus, steady_clock())]
        if self._redis is not None:
            stores.insert(0, RedisStore(self._redis))
        self.limits = Limits(
            catalog,
            stores,
            buffer=settings.rate_limit_buffer,
            on_degraded=lambda why: self._alerts.tell("warning", "limits", why),
            on_recovered=lambda what: self._alerts.tell("info", "limits recovered", what),
        )
        self._budgets = budgets = configured_budgets(catalog.budgets, settings.monthly_budget_alert)
        self._keeper = Bookkeeper(bus, budgets, replica)
        self._ledger = Ledger(bus, self._keeper, budgets, self._alerts, saving_from=settings.budget_saving_from)
        self.spending = Spending(self._keeper, budgets, self._ledger.spent, saving_from=settings.budget_saving_from)
        self._health = Health()
        self._hints = Hints(bus, catalog, self._health, self._alerts, replica)
        self._learned = Learned()
        self._vendors = Vendors(catalog, self._health, self.limits, self._learned, providers.keys())
        self._lookout = Lookout(
            catalog,
            self._learned,
            self._health,
            self.limits,
            available=providers.keys(),
            default_model=settings.default_model,
            by_quality=not settings.cost_optimization,
            thrifty=self.spending.is_nearly_used,
        )
        self._reuse = configured_reuse(settings, self._redis, self._alerts)
        schedule = Schedule.of(settings.lane_weights)
        self._admission = Admission(
            catalog,
            self.limits,
            self._health,
            self.spending,
            schedule,
            open_provider=self._open_provider,
            max_parked=settings.max_parked,
        )
        replies, prefixes = Replies(bus), settings.reply_prefixes
        self._backlog = Backlog(bus)
        self._withdrawals = Withdrawals(
            bus, self._probes, self._audit, self._metrics, replica=replica, prefixes=prefixes
        )
        self._worker = Worker(
            bus,
            self._lanes,
            self._answerer(),
            self._admission,
            Slots(settings.max_workers, settings.critical_workers, schedule),
            self._audit,
            self._probes,
            self._metrics,
            replica=replica,
            on_ended=self._withdrawals.forget,
            prefixes=prefixes,
            enable_streaming=settings.enable_streaming,
        )
        self._ingress = Ingress(
            bus,
            replies,
            self._probes,
            self._backlog,
            self._withdrawals,
            self._metrics,
            timeout_s=settings.request_timeout,
            prefixes=prefixes,
        )

    def _answerer(self) -> Answerer:
        settings, learned = self._settings, self._learned
        clocks = Clocks(
            first_token_s=settings.first_token_timeout,
            between_s=settings.token_timeout,
            total_s=settings.answer_timeout,
            floor=settings.min_tokens_per_second,
        )
        attempts = Attempts(
            self._providers,
            self._catalog,
            self._audit,
            self.limits,
            self._health,
            learned,
            Prefixes(time.monotonic),
            self.spending,
            self._metrics,
            clocks,
            whole_answer_s=max(settings.read_timeout, settings.first_token_timeout),
        )
        return Answerer(
            attempts,
            self._admission,
            self._lookout,
            learned,
            self._catalog,
            self.spending,
            self._audit,
            self._reuse,
            max_retries=settings.max_retries,
            hedge_critical=settings.hedge_critical,
            jitter=random.random,
        )

    def stop(self) -> None:
        self._stopping.set()

    def load(self) -> dict[str, Any]:
        """What this replica has on its hands at this moment, what its cache was good for, what budgets have left."""
        return {
            "running": len(self._worker.running),
            "parked": self._admission.parked,
            "held": len(self._lanes.held),
            "reservations": self.limits.outstanding,
            "holds": self.spending.outstanding,
            "sharing": self._reuse.under_way,
            "tasks": len(asyncio.all_tasks()),
            "cache": self._reuse.figures.shown(),
            "budgets": self.spending.used(),
        }

    def figures(self, most_listed: int = MAX_LISTED) -> dict[str, Any]:
        """`load`, with at most so many requests in flight listed, how vendors stand, and what was counted, if it was.

        It grows with the catalog and the list alone.
        """
        running, held = self._worker.running, self._lanes.held
        return self.load() | {
            "in_flight": in_flight(running, held, datetime.now(UTC), most_listed),
            "providers": self._vendors.shown(),
            "metrics": self._metrics.shown(time.monotonic()),
        }

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, calling `on_ready` once requests are taken.

        Raises:
            BusClosed: the connection is lost for good (in an exception group); what was running is given up, and the
                broker delivers it again.
        """
        try:
            await self._serve(on_ready)
        finally:
            for left in (self._ingress, self._worker, self._withdrawals, self._hints, self._alerts, self._audit):
                await left.abandon()
            await self.limits.close()
            await self._keeper.close()
            await self._reuse.close()
            if self._redis is not None:
                await self._redis.aclose()

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        pulls = [self._worker.pull(priority) for priority in Priority]
        background = [
            self._bus.watch(),
            self._lanes.keep_alive(),
            self._worker.stop_abandoned(),
            self._backlog.watch(),
            self.limits.keep_warm(),
            self._ledger.run(),
            self.spending.renew(),
        ]
        await self._probes.start()
        await self._hints.start()
        cancels = await self._bus.nc.subscribe("llm.cancel.*", cb=self._worker.on_cancel)
        await self._bus.nc.subscribe("llm.running.*", cb=self._worker.redelivery.on_asked)
        await self._bus.nc.subscribe("llm.joined.*", cb=self._worker.on_joined)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in background]
            pulling = [tasks.create_task(pull) for pull in pulls]
            await self._lanes.start()
            await self._withdrawals.start()
            await self._ingress.start()
            service = await announce(
                self._bus,
                self._catalog,
                self._providers.keys(),
                self._replica,
                self.load,
                self.figures,
                self._vendors.outlook,
                self._lookout.route,
                self._budgets,
            )
            warming = tasks.create_task(self._open_providers())
            await self._bus.settle()  # ready means: the server knows our subscriptions
            on_ready()
            if not self._providers:
                log.warning("no provider is configured: every request will fail; `sidecar check` says what is missing")
            log.info("processor ready", replica=self._replica, providers=sorted(self._providers))
            await self._stopping.wait()
            log.info("stopping", running=len(self._worker.running))
            await self._ingress.stop()
            for task in pulling:
                task.cancel()
            await self._lanes.stop()
            await service.stop()
            await self._worker.drain(self._settings.shutdown_grace)
            await self._withdrawals.stop()
            await cancels.unsubscribe()
            await self._audit.drain()
            await self._hints.drain()
            await self._alerts.drain()
            for task in (*running, warming):
                task.cancel()

    async def _open_providers(self) -> None:
        """Import the SDKs after readiness, one by one, so that the first request need not wait for them."""
        for name in self._providers:
            await self._open_provider(name)

    async def _open_provider(self, name: str) -> None:
        try:
            await self._providers[name].open()
        except Exception as error:  # noqa: BLE001  a vendor's SDK may fail to import in any way; the call says so too
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
