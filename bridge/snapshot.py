"""Everything at a glance, once a second while somebody looks: asked of the sidecars and the broker, for all at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg

from bridge.figures import Figures, decode_statistics
from bridge.heard_alerts import SUBJECTS, HeardAlerts, instant
from bridge.line import Line
from bridge.merging import LANES, Depth, Heard, Merge
from bridge.spend import Spend
from processor import subjects
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.tasks import happens

EVERY_S = 1.0
GATHER_S = 0.3
"""How long replicas have for their answers."""
GONE_S = 3.0
"""A replica that has said nothing for so long is gone."""
ANSWERS_WITHIN_S = 1.5
"""How long the broker has, and replicas that were there before, or any where none has answered: busy is not gone."""
LATEST_WITHIN_S = 2.0
MAX_REPLICAS: Final = 64
_PENDING: Final = 4 * MAX_REPLICAS

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Frame:
    """A snapshot, as an object and as JSON, and what each replica told. `at` is in seconds of the monotonic clock."""

    number: int
    at: float
    snapshot: Mapping[str, Any]
    text: str
    figures: Mapping[str, Figures]


class Collector:
    """The one that asks, whoever looks. Alerts are heard all the time; the rest is asked only while it is wanted."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._bus: Bus | None = None
        """The connection that we have subscribed on."""
        self._inbox = ""
        self._heard: dict[str, Heard] = {}
        self._told = asyncio.Event()
        """An answer has come, or that there will be none."""
        self._nobody = False
        """No replica has subscribed to the question."""
        self.alerts = HeardAlerts()
        self._spend = Spend(line)
        self._frame: Frame | None = None
        self._arrived = asyncio.Event()
        self._wanted = asyncio.Event()
        self.watchers = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody looks, and wants every snapshot."""
        self.watchers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.watchers -= 1

    async def after(self, number: int) -> Frame:
        """The newest snapshot, once it is a later one than `number`."""
        while self._frame is None or self._frame.number <= number:
            await self._arrived.wait()
        return self._frame

    async def latest(self) -> Frame:
        """A snapshot that is no older than `EVERY_S`.

        Raises:
            RequestError: `unavailable`, there is none within `LATEST_WITHIN_S`.
        """
        number = 0 if self._frame is None else self._frame.number
        if self._frame is not None and time.monotonic() - self._frame.at <= EVERY_S:
            return self._frame
        self._wanted.set()
        try:
            async with asyncio.timeout(LATEST_WITHIN_S):
                return await self.after(number)
        except TimeoutError:
            raise RequestError(ErrorType.UNAVAILABLE, "nothing could be found out in time") from None

    async def run(self) -> NoReturn:
        """Collect while somebody looks, for ever."""
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._round()
                except Exception as error:  # whoever looks sees an old picture; all else is served
                    log.exception("no snapshot", error=repr(error))
                if self.watchers:
                    self._wanted.set()
                    await asyncio.sleep(max(0.0, began + EVERY_S - time.monotonic()))
                else:
                    await happens(self._wanted, EVERY_S)
        finally:
            await self._spend.close()

    async def _round(self) -> None:
        """Subscribe where that is due; ask, and show what came, where somebody wants to know."""
        bus = self._line.bus
        if bus is not self._bus and bus.is_connected:
            await self._subscribe(bus)
        if not self._wanted.is_set():
            return
        self._wanted.clear()
        depths: Mapping[str, Depth] = {}
        answers = False
        if bus is self._bus and bus.is_connected:
            self._spend.renew()
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(_answers(bus))
                looking = {lane: tasks.create_task(_depth(bus, lane)) for lane in LANES}
                tasks.create_task(self._gather(bus))
            answers = answering.result()
            depths = {lane: depth for lane, task in looking.items() if (depth := task.result()) is not None}
        self._show(answers, depths)

    def _show(self, answers: bool, depths: Mapping[str, Depth]) -> None:
        now = time.monotonic()
        self._heard = {name: one for name, one in self._heard.items() if now - one.at <= GONE_S}
        heard = dict(self._heard) if answers else {}
        snapshot = {
            "v": 1,
            "at": instant(datetime.now(UTC)),
            "state": "no_broker" if not answers else "ok" if heard else "no_sidecar",
            **Merge(heard, depths).shown(),
            "spend": self._spend.shown,
            "alerts": self.alerts.shown(),
        }
        number = 1 if self._frame is None else self._frame.number + 1
        figures = {name: one.figures for name, one in heard.items()}
        self._frame = Frame(number, now, snapshot, orjson.dumps(snapshot).decode(), figures)
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    async def _subscribe(self, bus: Bus) -> None:
        inbox = bus.nc.new_inbox()
        with suppress(nats.errors.Error, OSError):  # it went away meanwhile: the next round comes here again
            await bus.nc.subscribe(inbox, cb=self._on_statistics, pending_msgs_limit=_PENDING)
            for subject in SUBJECTS:
                await bus.nc.subscribe(subject, cb=self._on_alert, pending_msgs_limit=_PENDING)
            self._bus, self._inbox = bus, inbox

    async def _gather(self, bus: Bus) -> None:
        asked, self._nobody = time.monotonic(), False
        with suppress(nats.errors.Error, OSError):  # nobody answers then, and it shows
            await bus.publish("$SRV.STATS.sidecar", b"", reply=self._inbox)
            await asyncio.sleep(GATHER_S)
            while self._is_missed(asked) and (left_s := asked + ANSWERS_WITHIN_S - time.monotonic()) > 0:
                self._told.clear()
                await happens(self._told, left_s)

    def _is_missed(self, asked: float) -> bool:
        """Whether one that was there before, or any at all, has not answered since it was `asked`, and still may."""
        return not self._nobody and (not self._heard or any(one.at < asked for one in self._heard.values()))

    async def _on_statistics(self, msg: Msg) -> None:
        self._told.set()
        if not msg.data:
            self._nobody = True
            return
        try:
            name, figures = decode_statistics(msg.data)
        except ValueError as error:
            log.warning("a sidecar's statistics cannot be read", error=str(error))
            return
        now, before = time.monotonic(), self._heard.get(name)
        if before is not None:
            self._heard[name] = before.then(figures, now)
        elif len(self._heard) < MAX_REPLICAS:
            self._heard[name] = Heard(now, figures)

    async def _on_alert(self, msg: Msg) -> None:
        self.alerts.hear(msg.subject, msg.data, datetime.now(UTC))


async def _answers(bus: Bus) -> bool:
    """Whether the broker does: a connection to one that has fallen silent still looks well."""
    try:
        await bus.nc.round_trip(ANSWERS_WITHIN_S)
    except (nats.errors.Error, OSError):
        return False
    return True


async def _depth(bus: Bus, lane: str) -> Depth | None:
    """Of a lane; None where the broker cannot say."""
    subject = f"$JS.API.CONSUMER.INFO.{subjects.REQUESTS}.{lane}"
    try:
        answer = await bus.nc.request(subject, b"", timeout=ANSWERS_WITHIN_S)
        info = orjson.loads(answer.data)
        return Depth(int(info["num_pending"]), int(info["num_ack_pending"]))
    except (nats.errors.Error, OSError, ValueError, KeyError, TypeError):
        return None  # it shows as not known
