"""What `ask` and `provision` print: a NATS client on the terminal."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import orjson
from rich.console import Console
from rich.table import Table

from processor import provision, subjects
from processor.asking import NoSidecar, Update, ask
from processor.broker import HOST, contract_dir
from processor.bus import CLOSE_TIMEOUT_S
from processor.config import Settings, shown
from processor.exits import Exit, Fatal
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.nats_client import Client
from processor.nats_login import login, server_urls
from processor.subjects import Priority

_STYLE = {"created": "green", "updated": "green", "unchanged": "dim", "drifted": "yellow"}


def broker_url(settings: Settings) -> str:
    """NATS_URL, or where `sidecar up` puts its own broker."""
    return settings.nats_url or f"nats://{HOST}:{settings.nats_port}"


@asynccontextmanager
async def connection(settings: Settings) -> AsyncIterator[Client]:
    """A short-lived client connection. Raises Fatal where no server takes us, or NATS_URL or NATS_CREDS is wrong."""
    nc = Client()
    try:
        await _connect(nc, settings)
        yield nc
    finally:
        await nc.hang_up(CLOSE_TIMEOUT_S)


async def _connect(nc: Client, settings: Settings) -> None:
    url = broker_url(settings)

    async def ignore(_: Exception) -> None:
        """The failed first connection is raised by connect itself."""

    try:
        await nc.connect(
            server_urls(url),
            name="sidecar command",
            allow_reconnect=False,
            # For the first connection too: nats-py's default is sixty attempts, two seconds apart.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=3,
            error_cb=ignore,
            **login(settings),
        )
    except (OSError, nats.errors.NoServersError) as error:
        raise Fatal(
            f"no NATS server at {shown(url)}: start one with `sidecar up`, or set NATS_URL", Exit.UNREACHABLE
        ) from error
    except nats.errors.Error as error:
        raise Fatal(f"the NATS server at {shown(url)} does not take us: {error}", Exit.UNREACHABLE) from error


async def ask_and_print(
    settings: Settings, body: dict[str, Any], *, priority: Priority, timeout_s: float | None, as_json: bool
) -> int:
    """Ask; print the answer on stdout and one line about it on stderr."""
    wait_s = timeout_s or settings.request_timeout
    body["deadline_ms"] = max(1, int(wait_s * 1000))
    request_id = subjects.new_request_id()
    out = _Terminal(as_json)
    async with connection(settings) as nc:
        # A little longer than the deadline, so that the sidecar's own error can arrive.
        updates = ask(nc, body, priority=priority, request_id=request_id, timeout_s=wait_s + 2)
        try:
            async with aclosing(updates):
                async for update in updates:
                    out.show(update)
        except NoSidecar:
            raise Fatal("no sidecar is running on this broker: start one with `sidecar up`", Exit.UNREACHABLE) from None
        except TimeoutError:
            raise Fatal(f"no answer in {wait_s:g} s (request {request_id})", Exit.DEADLINE) from None
    return out.code


class _Terminal:
    """Prints one request's updates; `code` is the exit code they amount to."""

    def __init__(self, as_json: bool) -> None:
        self.code = Exit.OK
        self._as_json = as_json
        self._shown = False

    def show(self, update: Update) -> None:
        match update.event:
            case "delta":
                self._write(update.fields.get("text", ""))
            case "restarted":
                self._write("\n")
                print("[the answer begins anew: the first model failed]", file=sys.stderr)
                self._shown = False
            case "final":
                self._final(update.fields)
            case _:
                self._error(update.fields)

    def _final(self, reply: dict[str, Any]) -> None:
        if self._as_json:
            print(orjson.dumps(reply, option=orjson.OPT_INDENT_2).decode())
            return
        self._write("\n" if self._shown else f"{reply['response']}\n")
        for call in reply.get("tool_calls", ()):
            print(f"{call['name']}({call['arguments']})")
        usage, timing = reply["usage"], reply["timing"]
        about = (
            f"{reply['served_by']} ({reply['provider']}) · {usage['input_tokens']} in, {usage['output_tokens']} out · "
            f"${reply['cost_usd']:.6f} · first token {timing['first_token_ms'] or 0:.0f} ms, "
            f"total {timing['total_ms']:.0f} ms · {_reused(reply)}{reply['id']}"
        )
        Console(stderr=True, highlight=False, soft_wrap=True).print(about, style="dim")
        for warning in reply.get("warnings", ()):
            Console(stderr=True, highlight=False).print(warning, style="yellow")

    def _error(self, fields: dict[str, Any]) -> None:
        error = fields["error"]
        self.code = Exit.DEADLINE if error["type"] == "deadline_exceeded" else Exit.FAILED
        if self._as_json:
            print(orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode())
            return
        if self._shown:
            self._write("\n")
        Console(stderr=True, highlight=False).print(f"{error['type']}: {error['message']}", style="red", markup=False)

    def _write(self, text: str) -> None:
        if not self._as_json and text:
            self._shown = True
            print(text, end="", flush=True)


def _reused(reply: dict[str, Any]) -> str:
    if not (reply.get("cached") or reply.get("coalesced")):
        return ""
    whence = "cached" if reply.get("cached") else "answered with another"
    return f"{whence}, saved ${reply['saved_usd']:.6f} · "


async def provision_report(settings: Settings, *, update: bool, replicas: int | None, files: Path | None) -> int:
    """Apply the contract's files and print one line for each stream and consumer."""
    folder = files or contract_dir()
    if not (folder / "streams").is_dir():
        raise Fatal(f"{folder} has no streams/ folder", Exit.USAGE)
    async with connection(settings) as nc:
        try:
            outcomes = await provision.provision(nc, folder, update=update, replicas=replicas)
        except (JetStreamError, JetStreamUnavailable) as error:
            raise Fatal(f"{shown(broker_url(settings))}: {error}") from error
    table = Table("", "name", "state", "field", "file", "server", box=None, pad_edge=False)
    for outcome in outcomes:
        state = f"[{_STYLE[outcome.state]}]{outcome.state}[/]"
        table.add_row(outcome.kind, outcome.name, state)
        for drift in outcome.drift:
            table.add_row("", "", "", drift.field, str(drift.wanted), str(drift.found))
    Console().print(table)
    return Exit.FAILED if any(outcome.state == "drifted" for outcome in outcomes) else Exit.OK
