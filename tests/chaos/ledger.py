"""What must be true after any chaos, checked on what clients heard, streams hold and vendors billed. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any

import orjson

from processor.spend import dollars, pico
from tests.chaos.vendor import Call

ENDINGS = frozenset({"final", "error"})
REFUSALS = frozenset({"unavailable", "queue_full"})
"""Errors after which a client asks again with the same id: if it was kept all the same, that finds it."""
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired", "dead"})

UNDER_WAY_S = 0.25
"""A broker that is killed forgets what it has delivered. Another worker then looks for the reply, finds none yet, and
its call is under way when the first worker's reply is stored."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a reply, heard or stored. `event` is Sidecar-Event; `end` is the empty one after a stream."""

    event: str
    request_id: str = ""
    attempt: int = 0
    seq: int = 0
    body: bytes = b""
    at: float = 0.0
    """Seconds since the epoch: when it was heard, or when the server stored it."""

    @classmethod
    def of(cls, headers: Mapping[str, str] | None, body: bytes, at: float) -> Message:
        if headers and "Sidecar-Event" in headers:
            attempt, seq = int(headers["Sidecar-Attempt"]), int(headers["Sidecar-Seq"])
            return cls(headers["Sidecar-Event"], headers["Sidecar-Request-Id"], attempt, seq, body, at)
        status = (headers or {}).get("Status")
        return cls(f"status {status}" if status else "end", body=body, at=at)

    @property
    def refuses(self) -> bool:
        return self.event == "error" and self.fields["error"]["type"] in REFUSALS

    @property
    def fields(self) -> dict[str, Any]:
        decoded: dict[str, Any] = orjson.loads(self.body)
        return decoded


@dataclass(slots=True)
class Sent:
    """One request as its client knows it; `key` is its text, which vendors and answers repeat."""

    key: str
    request_id: str | None
    """None: the sidecar gives one."""
    streamed: bool
    listens: bool
    """It has an inbox of its own for the answer."""
    kept: bool = False
    """PubAck'ed, or taken up by somebody: it must end."""
    at: float = 0.0
    """When it was first sent, in seconds since the epoch."""
    heard: list[Message] = field(default_factory=list)

    @property
    def ending(self) -> Message | None:
        return next((message for message in self.heard if message.event in ENDINGS), None)

    @property
    def begun(self) -> bool:
        """Somebody has it: its client has heard more than that nobody is there."""
        return any(message.request_id for message in self.heard)

    @property
    def satisfied(self) -> bool:
        """Nothing more is to come, as far as the client can tell."""
        return self.ending is not None and (not self.streamed or self.heard[-1].event == "end")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What broker and vendors hold when all is quiet. `replies` and `audit` go by request id, in stream order."""

    replies: Mapping[str, Sequence[Message]]
    audit: Mapping[str, Sequence[Mapping[str, Any]]]
    keys: Mapping[str, str]
    """Request id → key, of everything that a worker ever took up."""
    queued: int
    unacknowledged: Mapping[str, int]
    """Consumer → deliveries that nobody has acknowledged."""
    calls: Sequence[Call]
    outages: Sequence[tuple[float, float]] = ()
    """From when until when messages could pass clients and streams by: deltas, never endings."""
    loads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each sidecar that lives says it has on its hands."""
    counted: int | None = None
    """What the counters of `LLM_SPEND` say was spent, in pico-dollars."""
    idle_tasks: int = 0
    """How many tasks a sidecar without a request has."""

    def cut_off(self, sent_at: float, ended_at: float) -> bool:
        return any(sent_at <= end and ended_at >= start for start, end in self.outages)

    def ending(self, request_id: str) -> Message | None:
        """The first ending stored."""
        return next((m for m in self.replies.get(request_id, ()) if m.event in ENDINGS), None)


def faults(sent: Sequence[Sent], evidence: Evidence) -> list[str]:
    """Every broken promise in one line each; an empty list is what one hopes for."""
    found = [*_queue(evidence), *left_over(evidence.loads, evidence.idle_tasks)]
    sent_at = {request.request_id: request.at for request in sent}
    for request_id, messages in evidence.replies.items():
        found += _stored(request_id, messages, evidence)
        if any(message.event not in ENDINGS for message in messages):
            found += _stream(request_id, messages, evidence.cut_off(sent_at[request_id], messages[-1].at))
    for request in sent:
        found += _client(request, evidence)
    found += _bills(evidence)
    found += _money(evidence)
    return found


def _queue(evidence: Evidence) -> Iterator[str]:
    if evidence.queued:
        yield f"LLM_REQUESTS still holds {evidence.queued}"
    for consumer, count in evidence.unacknowledged.items():
        if count:
            yield f"consumer {consumer} has {count} unacknowledged deliveries"


def left_over(loads: Mapping[str, Mapping[str, Any]], idle_tasks: int) -> Iterator[str]:
    """What sidecars still hold when there is nothing to do."""
    for replica, load in loads.items():
        for what, count in load.items():
            if isinstance(count, int) and count > (idle_tasks if what == "tasks" else 0):
                yield f"{replica} has {count} {what}"


def _stored(request_id: str, messages: Sequence[Message], evidence: Evidence) -> Iterator[str]:
    endings = [message for message in messages if message.event in ENDINGS]
    if len(endings) != 1:
        yield f"{request_id}: {len(endings)} endings in LLM_REPLIES"
    terminal = [event for entry in evidence.audit.get(request_id, ()) if (event := entry["event"]) in TERMINAL]
    if len(terminal) != 1:
        yield f"{request_id}: terminal audit events {terminal}, stored ending {_shown(endings[:1])}"
    elif endings and (endings[0].event == "final") != (terminal[0] == "completed"):
        yield f"{request_id}: ended as {endings[0].event}, audited as {terminal[0]}"


def _client(request: Sent, evidence: Evidence) -> Iterator[str]:
    name = f"{request.request_id or 'ask'} ({request.key})"
    ids = {message.request_id for message in request.heard if message.request_id}
    ids |= {request.request_id} if request.request_id else set()
    ids |= {request_id for request_id, key in evidence.keys.items() if key == request.key}
    if len(ids) > 1:
        yield f"{name}: one request, several ids {sorted(ids)}"
    stored = next((ending for request_id in ids if (ending := evidence.ending(request_id))), None)
    if stored is None and request.kept:
        yield f"{name}: was kept and has no ending"
    if not request.listens:
        return
    endings = {message.body for message in request.heard if message.event in ENDINGS}
    if len(endings) > 1:
        yield f"{name}: heard {len(endings)} different endings: {_shown(request.heard)}"
    if stored is None:
        return
    if not endings:
        yield f"{name}: ended as {stored.event}, and its client heard {_shown(request.heard)}"
    elif endings != {stored.body}:
        yield f"{name}: heard another ending than the stored one"
    yield from _listener(name, request, cut_off=evidence.cut_off(request.at, stored.at))


def _listener(name: str, request: Sent, *, cut_off: bool) -> Iterator[str]:
    if not request.streamed:
        if len({(message.event, message.body) for message in request.heard}) > 1:
            yield f"{name}: asked for one message and heard {_shown(request.heard)}"
        return
    if request.heard and request.heard[-1].event != "end":
        yield f"{name}: the empty message after the stream never came; heard {_shown(request.heard)}"
    yield from _stream(name, request.heard, cut_off)


def _stream(name: str, messages: Sequence[Message], cut_off: bool) -> Iterator[str]:
    yield from _numbering(name, messages, cut_off)
    if not cut_off:
        yield from _text(name, messages)


def _numbering(name: str, messages: Sequence[Message], cut_off: bool) -> Iterator[str]:
    """Attempts in order, each numbered without holes, each but the first begun by `restarted`.

    Who was cut off may miss some, and hears the rest in order all the same.
    """
    once = [m for m in dict.fromkeys((m.event, m.attempt, m.seq, m.body) for m in messages) if m[0] != "end"]
    attempts = [attempt for attempt, _ in groupby(m[1] for m in once)]
    if attempts != sorted(set(attempts)):
        yield f"{name}: attempts mixed: {_shown(messages)}"
        return
    for attempt, group in groupby(once, key=lambda m: m[1]):
        one = list(group)
        seqs = [seq for _, _, seq, _ in one]
        if seqs != (sorted(set(seqs)) if cut_off else list(range(len(one)))):
            yield f"{name}: attempt {attempt} is numbered {seqs}"
        if cut_off:
            continue
        begins = [place for place, (event, *_) in enumerate(one) if event == "restarted"]
        if begins != ([0] if attempt > 1 else []):
            yield f"{name}: attempt {attempt} has `restarted` at {begins}: {_shown(messages)}"


def _text(name: str, messages: Sequence[Message]) -> Iterator[str]:
    final = next((message for message in messages if message.event == "final"), None)
    if final is None:
        return
    pieces = [m.fields["text"] for m in messages if m.event == "delta" and m.attempt == final.attempt]
    if "".join(pieces) != final.fields["response"]:
        yield f"{name}: the pieces of attempt {final.attempt} are not the answer: {_shown(messages)}"


def _bills(evidence: Evidence) -> Iterator[str]:
    """Each answer is one call's, whole; and nobody is asked again once the reply is stored."""
    calls = defaultdict(list)
    for call in evidence.calls:
        calls[call.key].append(call)
    for request_id, key in evidence.keys.items():
        ending = evidence.ending(request_id)
        if ending is None:
            continue
        if any(call.arrived > ending.at + UNDER_WAY_S for call in calls[key]):
            when = ", ".join(f"{call.vendor} {call.arrived - ending.at:+.3f} s" for call in calls[key])
            took = [f"{e['replica']}, delivery {e['delivery']}" for e in evidence.audit.get(request_id, ())]
            yield f"{request_id} ({key}): called again after its reply was stored: {when}; audited by {took}"
        if ending.event == "final":
            whole = {call.answer for call in calls[key] if call.answered is not None}
            if ending.fields["response"] not in whole:
                yield f"{request_id} ({key}): no vendor gave this answer whole: {ending.fields['response']!r}"


def _money(evidence: Evidence) -> Iterator[str]:
    """The counters say what the audit log's attempts cost together, to the last digit."""
    attempts = [e for events in evidence.audit.values() for e in events if e["event"] == "attempt"]
    spent = sum(pico(Decimal(str(attempt.get("cost_usd", 0)))) for attempt in attempts)
    if evidence.counted is not None and evidence.counted != spent:
        yield f"the counters say {dollars(evidence.counted)} dollars, the audit log {dollars(spent)}"


def _shown(messages: Sequence[Message]) -> str:
    """`1:delta×20 1:final end`: attempts, events and how many in a row."""
    runs = groupby(f"{m.attempt}:{m.event}" if m.attempt else m.event for m in messages)
    return " ".join(name if (count := len(list(run))) == 1 else f"{name}×{count}" for name, run in runs) or "nothing"


def _how(ending: Message) -> str:
    """`final`, or what an error says."""
    error = ending.fields.get("error")
    return f"{error['type']}: {error['message'][:80]}" if error else ending.event


def stories(evidence: Evidence) -> Iterator[str]:
    """What is written of each request that ended with an error."""
    for request_id, entries in evidence.audit.items():
        if (ending := evidence.ending(request_id)) is not None and ending.event == "error":
            steps = (f"{e['replica']}/{e['delivery']}/{e['event']}/{e.get('attempt', '')}" for e in entries)
            yield f"{request_id}: {_how(ending)}: {' '.join(steps)}"


def summary(sent: Sequence[Sent], evidence: Evidence) -> str:
    """What happened, in one line for the reader of a failure."""
    endings = Counter(_how(ending) for i in evidence.replies if (ending := evidence.ending(i)))
    answered = sum(call.answered is not None for call in evidence.calls)
    return f"{len(sent)} sent, endings {dict(endings)}, {len(evidence.calls)} vendor calls, {answered} answered"
