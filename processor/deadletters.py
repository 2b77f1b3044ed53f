"""Requests that could not be done, kept whole in `LLM_DEAD` with the reason."""

from __future__ import annotations

from processor import jetstream, subjects
from processor.bus import Bus, MessageTooLarge
from processor.errors import RequestError
from processor.lanes import Delivery


async def bury(bus: Bus, delivery: Delivery, reason: RequestError) -> None:
    """Keep the delivery's body and headers; `Sidecar-Reason` and `Sidecar-Deliveries` say why and after how many tries.

    Of a message so large that these do not fit beside it, the first half of what the broker takes is kept, and
    `Sidecar-Body-Bytes` tells its length.

    Raises:
        JetStreamUnavailable: the broker did not acknowledge; the delivery is still on its lane.
    """
    kept = {k: v for k, v in delivery.headers.items() if not k.startswith("Nats-")}
    ours = {
        "Nats-Msg-Id": f"{delivery.request_id}:dead",
        "Sidecar-Reason": " ".join(f"{reason.type}: {reason.message}".split())[:500],
        "Sidecar-Deliveries": str(delivery.count),
    }
    subject = subjects.dead(delivery.priority, delivery.request_id)
    try:
        await jetstream.publish(bus, subject, delivery.body, kept | ours)
    except MessageTooLarge:
        part = delivery.body[: bus.nc.max_payload // 2]
        await jetstream.publish(bus, subject, part, ours | {"Sidecar-Body-Bytes": str(len(delivery.body))})
