"""`nats/asyncapi.yaml`: the wire contract as AsyncAPI 3, its schemas generated from the message models."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from processor.alerts import Alert
from processor.audit_events import Attempt, Ended, Received, Routed
from processor.batches import Batch
from processor.errors import ErrorType
from processor.hints import BreakerStatus
from processor.messages import Request
from processor.reply_bodies import Delta, ErrorReply, FinalReply, Restarted
from processor.subjects import AuditEvent, Priority

Json = dict[str, Any]

_MODELS: tuple[type[BaseModel], ...] = (
    *(Request, Delta, Restarted, FinalReply, ErrorReply, Received, Routed, Attempt, Ended),
    *(Alert, BreakerStatus, Batch),
)
_TO_CLIENT: Json = {
    "type": "object",
    "properties": {
        "Sidecar-Request-Id": {"type": "string"},
        "Sidecar-Event": {"enum": ["delta", "restarted", "final", "error"]},
        "Sidecar-Attempt": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "Sidecar-Seq": {"type": "string", "pattern": "^[0-9]+$", "description": "0, 1, 2 … within an attempt"},
    },
    "required": ["Sidecar-Request-Id", "Sidecar-Event", "Sidecar-Attempt", "Sidecar-Seq"],
}


def document() -> Json:
    """The whole document."""
    schemas = models_json_schema(
        [(model, "validation" if model is Request else "serialization") for model in _MODELS],
        ref_template="#/components/schemas/{model}",
    )[1]["$defs"]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "CKCIAS Sidecar",
            "version": version("ckcias-sidecar"),
            "description": "An LLM gateway on a NATS bus. Written by `make contract`; nats/README.md explains it.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "localhost:4222", "protocol": "nats"}},
        "channels": _channels(),
        "operations": _operations(),
        "components": {"schemas": schemas, "messages": _messages()},
    }


def _channels() -> Json:
    request_id = {"id": {"description": "1 to 128 letters, digits, _ or -: the idempotency key"}}
    priority = {"priority": {"enum": [str(p) for p in Priority]}}
    replies = ["delta", "restarted", "final", "error", "end"]
    return {
        "ask": _channel("llm.request.{priority}", ["request"], "Plain request/reply, not stored", priority),
        "enqueue": _channel(
            "llm.request.{priority}.{id}", ["request"], "JetStream LLM_REQUESTS, a work queue", priority | request_id
        ),
        "inbox": _channel(None, replies, "The request's reply inbox, or the subject in its header Reply-To", {}),
        "reply": _channel("llm.reply.{id}", replies, "JetStream LLM_REPLIES", request_id),
        "cancel": _channel("llm.cancel.{id}", ["cancel"], "Stops a request", request_id),
        "audit": _channel(
            "llm.audit.{event}.{id}",
            ["received", "routed", "attempt", "ended"],
            "JetStream LLM_AUDIT, append only",
            {"event": {"enum": [str(e) for e in AuditEvent]}} | request_id,
        ),
        "dead": _channel(
            "llm.dead.{priority}.{id}", ["dead"], "JetStream LLM_DEAD: what could not be done", priority | request_id
        ),
        "batch": _channel(
            "llm.batch.{id}",
            ["batch"],
            "JetStream LLM_BATCHES: which requests belong together",
            {"id": {"description": "The batch's id; its requests are <id>-1, <id>-2 …"}},
        ),
        "alert": _channel(
            "llm.alert.{severity}",
            ["alert"],
            "What an operator has to know; not stored",
            {"severity": {"enum": ["info", "warning", "critical"]}},
        ),
        "status": _channel(
            "llm.status.{replica}",
            ["breaker"],
            "What a replica tells the others",
            {"replica": {"description": "Its name"}},
        ),
    }


def _channel(address: str | None, messages: list[str], description: str, parameters: Json) -> Json:
    channel: Json = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    return channel | ({"parameters": parameters} if parameters else {})


def _operations() -> Json:
    """From the sidecar's side: it receives requests and sends answers."""

    def operation(action: str, channel: str, **more: Any) -> Json:
        return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}} | more

    answered = {"reply": {"channel": {"$ref": "#/channels/inbox"}}}
    return {
        "ask": operation("receive", "ask", **answered),
        "enqueue": operation("receive", "enqueue", **answered),
        "cancel": operation("receive", "cancel"),
        "storeReply": operation("send", "reply"),
        "audit": operation("send", "audit"),
        "bury": operation("send", "dead"),
        "alert": operation("send", "alert"),
        "tell": operation("send", "status"),
        "hear": operation("receive", "status"),
    }


def _messages() -> Json:
    def message(model: type[BaseModel] | None, summary: str, headers: Json | None = None) -> Json:
        body: Json = {"summary": summary}
        if headers is not None:
            body["headers"] = headers
        if model is not None:
            body["payload"] = {"$ref": f"#/components/schemas/{model.__name__}"}
        return body

    from_client = {
        "type": "object",
        "properties": {
            "Reply-To": {
                "type": "string",
                "description": "_INBOX*, _R_.*, llm.reply.<id>, or a prefix of REPLY_PREFIXES",
            },
            "Nats-Msg-Id": {"type": "string", "description": "On an ask: the request's id"},
            "traceparent": {"type": "string"},
        },
    }
    service_error = _TO_CLIENT["properties"] | {
        "Nats-Service-Error-Code": {"enum": sorted({str(e.code) for e in ErrorType})},
        "Nats-Service-Error": {"type": "string"},
    }
    return {
        "request": message(Request, "What to ask a model", from_client),
        "delta": message(Delta, "The next piece of a streamed answer", _TO_CLIENT),
        "restarted": message(Restarted, "The answer begins anew: text so far is void", _TO_CLIENT),
        "final": message(FinalReply, "The answer", _TO_CLIENT),
        "error": message(ErrorReply, "Why there is no answer", _TO_CLIENT | {"properties": service_error}),
        "end": message(None, "Empty, without headers: the end of a streamed answer"),
        "cancel": message(None, "Any body, or none"),
        "received": message(Received, "A worker took the request up"),
        "routed": message(Routed, "Which models might answer, best first, and why"),
        "attempt": message(Attempt, "One call to a vendor: usage, cost, error"),
        "ended": message(Ended, "completed, failed, cancelled, expired or dead"),
        "alert": message(Alert, "What an operator has to know"),
        "batch": message(Batch, "The list of a batch, written before its first request is queued"),
        "breaker": message(BreakerStatus, "A circuit breaker changed its state"),
        "dead": message(None, "The request's body and headers; Sidecar-Reason and Sidecar-Deliveries say why"),
    }


def main() -> None:
    """Write nats/asyncapi.yaml beside the packages."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    text = yaml.dump(document(), Dumper=Plain, sort_keys=False, allow_unicode=True, width=120)
    path = Path(__file__).resolve().parent.parent / "nats" / "asyncapi.yaml"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
