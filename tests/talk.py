"""What a client does in the tests: request bodies, and reading streams to their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from processor import jetstream, subjects
from processor.catalog import load_catalog


def body(text: str = "one two three", **fields: Any) -> bytes:
    """A request for the model `haiku`."""
    return orjson.dumps({"messages": [{"role": "user", "content": text}], "model": "haiku"} | fields)


def served(name: str) -> str:
    """The alias of the model that `name` means on the day of the test: some retire soon."""
    return load_catalog().resolve(name, datetime.now(UTC).date()).model.alias


def read(msg: Msg) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(msg.data)
    return fields


@dataclass
class Streamed:
    """A streamed answer as the client saw it."""

    messages: list[Msg]

    def events(self) -> list[str]:
        return [m.headers["Sidecar-Event"] for m in self.messages if m.headers]

    def seqs(self, attempt: int = 1) -> list[int]:
        chosen = [m.headers for m in self.messages if m.headers and m.headers["Sidecar-Attempt"] == str(attempt)]
        return [int(headers["Sidecar-Seq"]) for headers in chosen]

    def text(self, attempt: int = 1) -> str:
        return "".join(
            read(m)["text"]
            for m in self.messages
            if m.headers and m.headers["Sidecar-Event"] == "delta" and m.headers["Sidecar-Attempt"] == str(attempt)
        )

    @property
    def final(self) -> dict[str, Any]:
        return read(next(m for m in self.messages if m.headers and m.headers["Sidecar-Event"] in {"final", "error"}))


async def ask(
    nc: Client, request: bytes, priority: str = "high", timeout: float = 10, **headers: str
) -> dict[str, Any]:
    """Plain request/reply."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read(await nc.request(f"llm.request.{priority}", request, timeout=timeout, headers=named or None))


async def listen(nc: Client, subject: str, callback: Callable[[Msg], Awaitable[None]] | None = None) -> Subscription:
    """A subscription that the server knows of, so that what any other connection publishes from here on is heard."""
    sub = await nc.subscribe(subject, cb=callback)
    for _ in range(2):  # nats-py's PING overtakes what is still buffered; only a second one comes behind it
        await nc.flush()
    return sub


async def ask_stream(nc: Client, request: bytes, priority: str = "high", timeout: float = 10) -> Streamed:
    """Everything up to the empty message without headers that ends a stream."""
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    await nc.publish(f"llm.request.{priority}", request, reply=inbox)
    messages: list[Msg] = []
    while True:
        msg = await sub.next_msg(timeout=timeout)
        if not msg.data and not msg.headers:
            await sub.unsubscribe()
            return Streamed(messages)
        messages.append(msg)


async def stored(nc: Client, request_id: str) -> dict[str, Any] | None:
    """The ending that LLM_REPLIES keeps."""
    message = await jetstream.last_message(nc, subjects.REPLIES, subjects.reply(request_id))
    return orjson.loads(message.body) if message and message.body else None


async def audit_events(nc: Client, request_id: str) -> list[dict[str, Any]]:
    """All audit events of a request, in order."""
    js = nc.jetstream()
    sub = await js.subscribe(f"llm.audit.*.{request_id}", ordered_consumer=True)
    found: list[dict[str, Any]] = []
    info = await js.stream_info(subjects.AUDIT, subjects_filter=f"llm.audit.*.{request_id}")
    expected = sum((info.state.subjects or {}).values())
    while len(found) < expected:
        found.append(read(await sub.next_msg(timeout=2)))
    await sub.unsubscribe()
    return found


async def all_audit_events(nc: Client, request_id: str, count: int) -> list[dict[str, Any]] | None:
    """The request's audit events once there are `count`: they are written beside its answer."""
    events = await audit_events(nc, request_id)
    return events if len(events) >= count else None
