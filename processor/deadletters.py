"""Requests that could not be done, kept whole in `LLM_DEAD` with the reason."""

from __future__ import annotations

import hashlib

from processor import jetstream, subjects
from processor.bus import MAX_SUBJECT_BYTES, Bus, MessageTooLarge
from processor.errors import RequestError
from processor.lanes import Delivery
from processor.nats_client import sendable

_OURS = ("Sidecar-Body-Bytes", "Sidecar-Original-Id")


async def bury(bus: Bus, delivery: Delivery, reason: RequestError) -> None:
    """Keep the delivery's body and headers; `Sidecar-Reason` and `Sidecar-Deliveries` say why and after how many tries.

    Headers that cannot be sent are left out; what is no request id is kept in `Sidecar-Original-Id`, and a hash stands
    in its place. Where it is too long for any reply subject, nothing is left to do, and the delivery is acknowledged.

    Of a message so large that these do not fit beside it, the first half of what the broker takes is kept, and
    `Sidecar-Body-Bytes` tells its length.

    Raises:
        JetStreamUnavailable: the broker did not acknowledge; the delivery is still on its lane.
    """
    request_id, kept_as = delivery.request_id, _kept_as(delivery.request_id)
    ours = {
        "Nats-Msg-Id": f"{kept_as}:dead",
        "Sidecar-Reason": " ".join(f"{reason.type}: {reason.message}".split())[:500],
        "Sidecar-Deliveries": str(delivery.count),
    }
    if kept_as != request_id:
        ours["Sidecar-Original-Id"] = request_id[:500]
    theirs = {k: v for k, v in sendable(delivery.headers).items() if not k.startswith(("Nats-", *_OURS))}
    subject = subjects.dead(delivery.priority, kept_as)
    try:
        await jetstream.publish(bus, subject, delivery.body, theirs | ours)
    except MessageTooLarge:
        part = delivery.body[: bus.nc.max_payload // 2]
        await jetstream.publish(bus, subject, part, ours | {"Sidecar-Body-Bytes": str(len(delivery.body))})
    if len(subjects.reply(request_id).encode()) > MAX_SUBJECT_BYTES:
        await delivery.ack()


def _kept_as(request_id: str) -> str:
    """The id, or a stand-in for what a client has queued as one and is none: of any length, with any bytes."""
    if subjects.is_request_id(request_id):
        return request_id
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]
