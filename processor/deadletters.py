"""Requests that could not be done, kept whole in `LLM_DEAD` with the reason."""

from __future__ import annotations

from processor import jetstream, subjects
from processor.bus import Bus
from processor.errors import RequestError
from processor.lanes import Delivery


async def bury(bus: Bus, delivery: Delivery, reason: RequestError) -> None:
    """Keep the delivery's body and headers; `Sidecar-Reason` and `Sidecar-Deliveries` say why and after how many tries.

    Raises:
        JetStreamUnavailable: the broker did not acknowledge; the delivery is still on its lane.
    """
    kept = {k: v for k, v in delivery.headers.items() if not k.startswith("Nats-")}
    headers = kept | {
        "Nats-Msg-Id": f"{delivery.request_id}:dead",
        "Sidecar-Reason": " ".join(f"{reason.type}: {reason.message}".split())[:500],
        "Sidecar-Deliveries": str(delivery.count),
    }
    subject = subjects.dead(delivery.priority, delivery.request_id)
    await jetstream.publish(bus.nc, subject, delivery.body, headers)
