"""Whether the bridge can do its work now, each condition named: for load balancers and for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "not known, without the one before"
NOTHING: Mapping[str, Any] = {"state": "no_broker", "replicas": [], "providers": []}


def readiness(snapshot: Mapping[str, Any] | None) -> dict[str, Any]:
    """`ready`, and of each check `ok` and, where it is not, `why`. None: nothing could be found out in time."""
    if snapshot is None:
        snapshot = NOTHING
    broker = snapshot["state"] != "no_broker"
    replicas = [one["replica"] for one in snapshot["replicas"]]
    configured = [one for one in snapshot["providers"] if one["configured"]]
    callable_ = [one["provider"] for one in configured if one["callable"]]
    if not replicas:
        no_provider = UNKNOWN
    elif not configured:
        no_provider = "no provider is configured: set a key, or a model server; `sidecar check` says more"
    else:
        names = ", ".join(one["provider"] for one in configured)
        no_provider = f"no call may start now: the circuits of {names} are open"
    no_processor = "no sidecar answers: start one with `sidecar processor`" if broker else UNKNOWN
    checks = {
        "nats": _check(broker, "the broker cannot be reached, or does not answer"),
        "processor": _check(bool(replicas), no_processor) | {"replicas": len(replicas)},
        "provider": _check(bool(callable_), no_provider) | {"callable": callable_},
    }
    return {"ready": all(check["ok"] for check in checks.values()), "checks": checks}


def _check(ok: bool, why: str) -> dict[str, Any]:
    return {"ok": ok, "why": None if ok else why}
