"""Streams and consumers as the files of `nats/` say: creates what is missing, names what drifted, never deletes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import nats.errors
import orjson
from nats.aio.client import Client

from processor import jetstream
from processor.jetstream import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, JetStreamError, JetStreamUnavailable

CLUSTER_REPLICAS: Final = 3
"""Copies of a stream in a cluster: one node may die."""
_NO_LEADER, _NO_PEERS, _NO_REPLICAS = 10008, 10005, 10074
_LEADER_WITHIN_S = 20.0
"""A cluster that has just started takes some seconds to elect."""
_PEERS_WITHIN_S = 5.0
"""A node that is being restarted is back by then."""
_PAUSE_S = 0.3

Json = Any


@dataclass(frozen=True, slots=True)
class Drift:
    """One field whose value on the server is not the file's."""

    field: str
    wanted: Json
    found: Json


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one stream or consumer. One that was created has a drift where the cluster had too few nodes."""

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
    reported. Without `replicas`, a stream that is created in a cluster has three where there are three nodes, and one
    that exists keeps what it has; consumers follow their stream.

    Raises:
        JetStreamError: the server refused a configuration.
        JetStreamUnavailable: no JetStream there.
    """
    clustered = bool(nc._server_info.get("cluster"))
    if clustered:
        await _leader(nc)
    outcomes = []
    peers_until = asyncio.get_running_loop().time() + _PEERS_WITHIN_S if clustered and replicas is None else None
    for path in sorted((contract / "streams").glob("*.json")):
        config = orjson.loads(path.read_bytes())
        if replicas is not None:
            config["num_replicas"] = replicas
        outcomes.append(await _stream(nc, config, update=update, peers_until=peers_until))
    for path in sorted((contract / "consumers").glob("*.json")):
        outcomes.append(await _consumer(nc, orjson.loads(path.read_bytes()), update=update))
    return outcomes


async def _leader(nc: Client) -> None:
    """Wait for a cluster that is just starting. Raises its last answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LEADER_WITHIN_S
    while True:
        try:
            await jetstream.call(nc, "INFO", timeout_s=2)
            return
        except JetStreamUnavailable as error:
            if isinstance(error.__cause__, nats.errors.NoRespondersError) or loop.time() > deadline:
                raise  # without responders there is no JetStream, and none will come
        except JetStreamError as error:
            if error.err_code != _NO_LEADER or loop.time() > deadline:
                raise
        await asyncio.sleep(_PAUSE_S)


async def _stream(nc: Client, config: dict[str, Json], *, update: bool, peers_until: float | None) -> Outcome:
    """Create or compare. `peers_until`, in a cluster whose replicas are not given: how long to wait for three nodes."""
    name = config["name"]
    try:
        found = (await jetstream.call(nc, f"STREAM.INFO.{name}"))["config"]
    except JetStreamError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        if peers_until is not None and await _created_in_cluster(nc, config, peers_until):
            return Outcome(name, "stream", "created")
        await jetstream.call(nc, f"STREAM.CREATE.{name}", config)
        few = (Drift("num_replicas", CLUSTER_REPLICAS, config.get("num_replicas", 1)),)
        return Outcome(name, "stream", "created", few if peers_until is not None else ())
    if peers_until is not None:
        config["num_replicas"] = found["num_replicas"]
    drift = tuple(differences(config, found))
    if drift and update:
        await jetstream.call(nc, f"STREAM.UPDATE.{name}", found | config)
    return Outcome(name, "stream", _state(drift, update), drift)


async def _created_in_cluster(nc: Client, config: Mapping[str, Json], peers_until: float) -> bool:
    """Create the stream with three replicas; False where there are no three nodes to hold them.

    Only a system account could ask for the number of nodes, so the server is asked to do it.
    """
    while True:
        try:
            wanted = {**config, "num_replicas": CLUSTER_REPLICAS}
            await jetstream.call(nc, f"STREAM.CREATE.{config['name']}", wanted)
            return True
        except JetStreamError as error:
            if error.err_code not in {_NO_PEERS, _NO_REPLICAS}:
                raise
            if error.err_code == _NO_REPLICAS or asyncio.get_running_loop().time() > peers_until:
                return False
        await asyncio.sleep(_PAUSE_S)


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
