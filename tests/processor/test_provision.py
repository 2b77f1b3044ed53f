"""`nats/` on a real server: created once, drift told field by field, nothing deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from processor import jetstream, subjects
from processor.broker import contract_dir
from processor.provision import Drift, differences, provision
from processor.subjects import Priority

CONTRACT = contract_dir()


async def test_a_second_run_changes_nothing(nc: Client) -> None:
    assert {outcome.state for outcome in await provision(nc, CONTRACT)} == {"unchanged"}


async def test_drift_is_told_field_by_field_and_set_right_only_on_demand(nc: Client) -> None:
    found = (await jetstream.call(nc, "STREAM.INFO.LLM_REPLIES"))["config"]
    await jetstream.call(nc, "STREAM.UPDATE.LLM_REPLIES", found | {"max_age": 7200_000_000_000, "description": "mine"})
    consumer = orjson.loads((CONTRACT / "consumers" / "low.json").read_bytes())
    consumer["config"]["max_ack_pending"] = 7
    await jetstream.call(nc, "CONSUMER.DURABLE.CREATE.LLM_REQUESTS.low", consumer)
    await nc.jetstream().publish("llm.reply.kept", b"x")

    drifted = {outcome.name: outcome for outcome in await provision(nc, CONTRACT)}
    assert drifted["LLM_REPLIES"].state == "drifted"
    assert Drift("max_age", 86_400_000_000_000, 7200_000_000_000) in drifted["LLM_REPLIES"].drift
    assert drifted["LLM_REQUESTS/low"].drift == (Drift("max_ack_pending", 50_000, 7),)
    assert (await jetstream.call(nc, "STREAM.INFO.LLM_REPLIES"))["config"]["max_age"] == 7200_000_000_000

    updated = {outcome.name: outcome.state for outcome in await provision(nc, CONTRACT, update=True)}
    assert (updated["LLM_REPLIES"], updated["LLM_REQUESTS/low"]) == ("updated", "updated")
    assert {outcome.state for outcome in await provision(nc, CONTRACT)} == {"unchanged"}
    info = await nc.jetstream().stream_info("LLM_REPLIES")
    assert (info.state.messages, info.config.max_age) == (1, 86_400)


async def test_what_is_not_in_the_files_is_left_alone(nc: Client) -> None:
    await nc.jetstream().add_stream(name="OTHERS", subjects=["others.>"])
    await provision(nc, CONTRACT, update=True)
    assert (await nc.jetstream().stream_info("OTHERS")).config.name == "OTHERS"
    await nc.jetstream().delete_stream("OTHERS")


async def test_the_audit_log_can_neither_be_purged_nor_deleted_from(nc: Client) -> None:
    ack = await nc.jetstream().publish("llm.audit.received.x", b"{}")
    for call, body in (("PURGE", {}), ("MSG.DELETE", {"seq": ack.seq})):
        with pytest.raises(jetstream.JetStreamError):
            await jetstream.call(nc, f"STREAM.{call}.LLM_AUDIT", body)


def test_the_files_are_the_contracts_streams_and_one_consumer_a_lane() -> None:
    streams = {path.stem: _json(path) for path in (CONTRACT / "streams").glob("*.json")}
    assert set(streams) == set(subjects.STREAMS)
    assert all(name == config["name"] for name, config in streams.items())
    requests = streams[subjects.REQUESTS]
    assert (requests["retention"], requests["discard"]) == ("workqueue", "new")
    assert (requests["max_msgs_per_subject"], requests["discard_new_per_subject"]) == (1, True)
    consumers = {path.stem: _json(path)["config"] for path in (CONTRACT / "consumers").glob("*.json")}
    assert set(consumers) == set(Priority)
    for name, config in consumers.items():
        assert (config["durable_name"], config["filter_subject"]) == (name, f"llm.request.{name}.*")
        assert (config["ack_wait"], "backoff" in config) == (12_000_000_000, False)


def _json(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = orjson.loads(path.read_bytes())
    return config


@pytest.mark.parametrize(
    ("wanted", "found", "drift"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, []),
        ({"a": 0, "b": False, "c": ""}, {}, []),
        ({"a": 1}, {}, [Drift("a", 1, None)]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, [Drift("a.c", 2, 3)]),
        ({"a": ["x"]}, {"a": ["y"]}, [Drift("a", ["x"], ["y"])]),
    ],
)
def test_differences(wanted: dict[str, Any], found: dict[str, Any], drift: list[Drift]) -> None:
    assert list(differences(wanted, found)) == drift


def test_requests_that_rest_for_hours_never_close_a_lane() -> None:
    """A delivery that was handed back with a delay counts as unacknowledged, and a lane stops at so many."""
    stream = orjson.loads((CONTRACT / "streams" / "LLM_REQUESTS.json").read_bytes())
    for path in (CONTRACT / "consumers").glob("*.json"):
        assert orjson.loads(path.read_bytes())["config"]["max_ack_pending"] >= stream["max_msgs"], path.name
