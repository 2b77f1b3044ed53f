"""Streams and consumers as the files of `nats/` say: creates what is missing, names what drifted, never deletes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from nats.aio.client import Client

from processor import jetstream
from processor.jetstream import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, JetStreamError

Json = Any


@dataclass(frozen=True, slots=True)
class Drift:
    """One field whose value on the server is not the file's."""

    field: str
    wanted: Json
    found: Json


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one stream or consumer."""

    name: str
    kind: Literal["stream", "consumer"]
    state: Literal["created", "unchanged", "drifted", "updated"]
    drift: tuple[Drift, ...] = ()


def differences(wanted: Mapping[str, Json], found: Mapping[str, Json], at: str = "") -> Iterator[Drift]:
    """Every field that `wanted` names and `found` has otherwise; the server's own further fields do not count.

    The server leaves fields out that have their zero value, so a missing field equals zero, false and empty.
    """
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from differences(value, other, f"{at}{key}.")
        elif (value or None) != (other or None):
            yield Drift(at + key, value, other)


async def provision(nc: Client, contract: Path, *, update: bool = False, replicas: int | None = None) -> list[Outcome]:
    """Bring the server to what the files under `contract` say, streams first. Running it again changes nothing.

    With `update`, drifted fields are set to the files' values where the server allows it; otherwise they are only
    reported.

    Raises:
        JetStreamError: the server refused a configuration.
        JetStreamUnavailable: no JetStream there.
    """
    outcomes = []
    for path in sorted((contract / "streams").glob("*.json")):
        config = orjson.loads(path.read_bytes())
        if replicas is not None:
            config["num_replicas"] = replicas
        outcomes.append(await _stream(nc, config, update=update))
    for path in sorted((contract / "consumers").glob("*.json")):
        outcomes.append(await _consumer(nc, orjson.loads(path.read_bytes()), update=update))
    return outcomes


async def _stream(nc: Client, config: dict[str, Json], *, update: bool) -> Outcome:
    name = config["name"]
    try:
        found = (await jetstream.call(nc, f"STREAM.INFO.{name}"))["config"]
    except JetStreamError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        await jetstream.call(nc, f"STREAM.CREATE.{name}", config)
        return Outcome(name, "stream", "created")
    drift = tuple(differences(config, found))
    if drift and update:
        await jetstream.call(nc, f"STREAM.UPDATE.{name}", found | config)
    return Outcome(name, "stream", _state(drift, update), drift)


async def _consumer(nc: Client, body: dict[str, Json], *, update: bool) -> Outcome:
    stream, config = body["stream_name"], body["config"]
    name = config["durable_name"]
    label = f"{stream}/{name}"
    try:
        found = (await jetstream.call(nc, f"CONSUMER.INFO.{stream}.{name}"))["config"]
    except JetStreamError as error:
        if error.err_code != CONSUMER_NOT_FOUND:
            raise
        await jetstream.call(nc, f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
        return Outcome(label, "consumer", "created")
    drift = tuple(differences(config, found))
    if drift and update:
        await jetstream.call(nc, f"CONSUMER.DURABLE.CREATE.{stream}.{name}", {**body, "action": "update"})
    return Outcome(label, "consumer", _state(drift, update), drift)


def _state(drift: tuple[Drift, ...], update: bool) -> Literal["unchanged", "drifted", "updated"]:
    if not drift:
        return "unchanged"
    return "updated" if update else "drifted"
