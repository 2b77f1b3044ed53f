"""`sidecar check`: every dependency on one line each, and how long a start takes."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import nats.errors
import orjson
import psutil
from nats.aio.client import Client
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from processor import broker, jetstream, subjects
from processor.catalog import CatalogError
from processor.commands import broker_url, connection
from processor.config import Settings, shown
from processor.exits import Exit, Fatal
from processor.jetstream import JetStreamError, JetStreamUnavailable

READY_WITHIN_S = 30.0
IDLE_WINDOW_S = 5.0
FIRST_ANSWER_S = 5.0
"""One that imports its SDKs on a busy machine answers late; where there is none, the server says so at once."""
_MARK = {"ok": "[green]ok[/]", "off": "[dim]off[/]", "warn": "[yellow]warn[/]", "bad": "[red]bad[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `off`: not configured, which is no fault."""

    what: str
    state: Literal["ok", "off", "warn", "bad"]
    detail: str


async def report(settings: Settings, *, timing: bool, serving: bool) -> int:
    """Print the findings; 1 when one is bad."""
    findings = [finding async for finding in _findings(settings, serving=serving)]
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(_MARK[finding.state], finding.what, escape(finding.detail))
    Console().print(table)
    if timing:
        with Console(stderr=True).status("starting a sidecar, asking it once, then watching it idle …"):
            figures = await _timing(settings)
        Console().print(figures)
    return Exit.FAILED if any(finding.state == "bad" for finding in findings) else Exit.OK


async def _findings(settings: Settings, *, serving: bool) -> AsyncIterator[Finding]:
    from processor.service import configured_catalog, configured_providers

    try:
        catalog = configured_catalog(settings)
        today = datetime.now(UTC).date()
        yield Finding("catalog", "ok", f"{len(catalog.models)} models")
        for name in catalog.models:
            if warning := catalog.resolve(name, today).warning:
                yield Finding(f"model {name}", "warn", warning)
    except CatalogError as error:
        yield Finding("catalog", "bad", str(error))
    configured = configured_providers(settings)
    for name in configured.providers:
        yield Finding(name, "ok", _reached_by(name, settings))
    for name, why in configured.missing.items():
        yield Finding(name, "off", f"{why}: left out of routing")
    if not configured.providers:
        yield Finding("providers", "bad", "none: set a vendor's key, LOCAL_BASE_URL, or install the extra `local`")
    if settings.redis_url:
        yield await _redis(settings.redis_url)
    if settings.nats_url is None:
        yield _binary()
    try:
        async with connection(settings) as nc:
            yield Finding("nats", "ok", f"{shown(broker_url(settings))}, server {nc.connected_server_version}")
            async for finding in _broker(nc, serving=serving):
                yield finding
    except Fatal as error:
        yield Finding("nats", "bad" if settings.nats_url or serving else "off", str(error))


def _reached_by(name: str, settings: Settings) -> str:
    if name != "local":
        return "key set"
    if settings.local_base_url:
        return f"{shown(settings.local_base_url)}, model {settings.local_model or 'smollm2-135m'}"
    return "smollm2-135m, embedded (a demo model)"


async def _redis(url: str) -> Finding:
    from redis import RedisError

    from processor.service import redis_client

    client = redis_client(url)
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        return Finding("redis", "warn", f"{shown(url)}: {error}; limits are shared through NATS meanwhile")
    finally:
        await client.aclose()
    return Finding("redis", "ok", shown(url))


def _binary() -> Finding:
    try:
        return Finding("nats-server", "ok", str(broker.binary()))
    except broker.BrokerError as error:
        return Finding("nats-server", "bad", str(error))


async def _broker(nc: Client, *, serving: bool) -> AsyncIterator[Finding]:
    for stream in subjects.STREAMS:
        try:
            state = (await jetstream.call(nc, f"STREAM.INFO.{stream}"))["state"]
            yield Finding(stream, "ok", f"{state['messages']} messages, {state['bytes'] / 1e6:.1f} MB")
        except (JetStreamError, JetStreamUnavailable) as error:
            yield Finding(stream, "bad", f"{error}: run `sidecar provision`")
    replicas = await _replicas(nc)
    detail = ", ".join(replicas) if replicas else "none answers: asks fail at once, enqueued requests wait"
    yield Finding("sidecars", "ok" if replicas else "bad" if serving else "warn", detail)


async def _replicas(nc: Client) -> list[str]:
    """Every sidecar that answers a discovery ping: some seconds for the first, a moment more for the others."""
    found: list[str] = []
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    await nc.publish("$SRV.PING.sidecar", b"", reply=inbox)
    deadline = time.monotonic() + FIRST_ANSWER_S
    try:
        while (left := deadline - time.monotonic()) > 0:
            answer = await sub.next_msg(timeout=left)
            deadline = min(deadline, time.monotonic() + 0.3)
            if answer.data:
                fields: dict[str, Any] = orjson.loads(answer.data)
                found.append(f"{fields['metadata']['replica']} {fields['version']}")
    except nats.errors.TimeoutError:
        return found
    finally:
        await sub.unsubscribe()
    return found


async def _timing(settings: Settings) -> Table:
    """Start `sidecar up` on a broker of its own, ask one question, and watch it idle."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "NATS_URL"}
        environment |= {"SIDECAR_DATA_DIR": folder, "NATS_PORT": "0", "SIDECAR_PORT": "0"}
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "processor.cli", "up", env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            url = await asyncio.wait_for(_ready_url(process), READY_WITHIN_S)
            ready_s = time.monotonic() - started
            answered = await _first_answer(settings.model_copy(update={"nats_url": url}))
            answer_s = time.monotonic() - started
            idle = await _idle(process.pid)
        except TimeoutError:
            raise Fatal(f"the sidecar was not ready within {READY_WITHIN_S:g} s") from None
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    table.add_row("start to ready", f"{ready_s:.2f} s")
    table.add_row("start to first answer", f"{answer_s:.2f} s" if answered is None else escape(f"none: {answered}"))
    for name, megabytes, percent in idle:
        table.add_row(f"idle: {name}", f"{megabytes:.0f} MB, {percent:.1f} % of a core")
    return table


async def _ready_url(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = b""
    async for line in process.stderr:
        said += line
        if (match := re.search(rb"ready on (nats://\S+)", line)) is not None:
            return match.group(1).decode()
    raise Fatal(f"the sidecar did not start:\n{said.decode(errors='replace')}")


async def _first_answer(settings: Settings) -> str | None:
    """None when the answer came, else why not."""
    body = orjson.dumps({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8})
    async with connection(settings) as nc:
        answer = await nc.request("llm.request.critical", body, timeout=READY_WITHIN_S)
    fields = orjson.loads(answer.data)
    return fields["error"]["message"] if "error" in fields else None


async def _idle(pid: int) -> list[tuple[str, float, float]]:
    """(name, resident megabytes, percent of one core) of the process and the broker it started."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in family:
        member.cpu_percent()
    await asyncio.sleep(IDLE_WINDOW_S)
    names = ["sidecar", *(member.name() for member in family[1:])]
    measured = [(m.memory_info().rss / 1e6, m.cpu_percent()) for m in family]
    return [(name, *figures) for name, figures in zip(names, measured, strict=True)]
