"""At the door: keys and what they allow, pages of other sites, and what is said to those who are not let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from nats.aio.client import Client
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs
from yarl import URL

from bridge import questions
from bridge.callers import NOBODY, Caller
from bridge.guards import Guards
from bridge.keyring import Keyring
from bridge.line import Line
from bridge.rates import KeyRates
from processor import jetstream, subjects
from processor.catalog import load_catalog
from processor.exits import Fatal
from processor.keys import hashed, new_key
from providers.base import Opened, TextDelta
from providers.scripted import Pause, ScriptedProvider
from tests.bridge.edge import Edge, bridging
from tests.conftest import StartProcessor, make_settings
from tests.processor.test_end_to_end import answer
from tests.talk import body, served
from tests.wait import wait_until


class Keys:
    """A file of keys, and a bridge's client that uses them by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of: dict[str, str] = {}
        self._lines: dict[str, str] = {}
        self.write()

    def add(self, name: str, **fields: Any) -> str:
        self.of[name] = new_key()
        lines = [f"[keys.{name}]", f'sha256 = "{hashed(self.of[name])}"']
        lines += [f"{field} = {orjson.dumps(value).decode()}" for field, value in fields.items()]
        self._lines[name] = "\n".join(lines)
        self.write()
        return self.of[name]

    def remove(self, name: str) -> None:
        del self._lines[name]
        self.write()

    def write(self) -> None:
        self.path.write_text("\n".join(self._lines.values()))

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.of[name]}"}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.toml")


@asynccontextmanager
async def guarded(nats_url: str, keys: Keys, **settings: Any) -> AsyncIterator[Edge]:
    async with bridging(nats_url, sidecar_api_keys=str(keys.path), **settings) as edge:
        yield edge


async def send(
    edge: Edge, method: str, path: str, headers: dict[str, str] | None = None, data: bytes | None = None
) -> tuple[int, Any, Any]:
    """Status, decoded answer, headers."""
    url = URL(edge.url + path, encoded=True)
    async with edge.client.request(method, url, headers=headers, data=data) as response:
        said = await response.read()
        decoded = orjson.loads(said) if said and response.content_type == "application/json" else said
        return response.status, decoded, response.headers


async def kind(edge: Edge, method: str, path: str, headers: dict[str, str], data: bytes | None = None) -> Any:
    """The error's type and message; None for an answer."""
    status, fields, _ = await send(edge, method, path, headers, data)
    return (status, fields["error"]["type"], fields["error"]["message"]) if status >= 400 else None


# --- who it is ------------------------------------------------------------------------------


async def test_without_a_key_or_with_an_unknown_one_nothing_is_told(nc: Client, nats_url: str, keys: Keys) -> None:
    keys.add("shop")
    async with guarded(nats_url, keys) as edge:
        for headers, says in [
            ({}, "a key is needed"),
            ({"Authorization": "Basic eDp5"}, "a key is needed"),
            ({"Authorization": f"Bearer {new_key()}"}, "this key is not known"),
            ({"x-api-key": keys.of["shop"][:-1]}, "this key is not known"),
        ]:
            for method, path in [
                ("POST", "/api/chat"),
                ("GET", "/api/requests/x"),
                ("GET", "/nope"),
                ("GET", "/metrics"),
            ]:
                status, fields, told = await send(edge, method, path, headers)
                assert (status, fields["error"]["type"]) == (401, "unauthorized")
                assert fields["error"]["message"].startswith(says)
                assert told["WWW-Authenticate"] == 'Bearer realm="sidecar"'
                assert told["X-Frame-Options"] == "DENY"


async def test_a_key_comes_as_a_bearer_or_as_x_api_key(nc: Client, nats_url: str, keys: Keys) -> None:
    key = keys.add("shop")
    async with guarded(nats_url, keys) as edge:
        for headers in (
            {"Authorization": f"Bearer {key}"},
            {"authorization": f"bearer   {key} "},
            {"x-api-key": key},
            {"Authorization": "Bearer none", "x-api-key": key},
        ):
            assert (await send(edge, "GET", "/api/requests/x", headers))[0] == 404


async def test_whoever_asks_whether_it_lives_needs_no_key(nc: Client, nats_url: str, keys: Keys) -> None:
    keys.add("shop")
    async with guarded(nats_url, keys) as edge:
        assert (await send(edge, "GET", "/health"))[0] == 200
        for method, path in [("HEAD", "/"), ("GET", "/ready"), ("GET", "/assets/none.js"), ("OPTIONS", "/api/chat")]:
            assert (await send(edge, method, path))[0] in {200, 404, 405, 503}


async def test_a_plain_key_of_the_settings_may_do_everything(nc: Client, nats_url: str) -> None:
    one, two = new_key(), "schlüssel-à-l'ancienne"
    async with bridging(nats_url, sidecar_api_keys=f"{one},{two}") as edge:
        for key in (one, two):
            for headers in ({"x-api-key": key}, {"Authorization": f"Bearer {key}"}):
                assert (await send(edge, "GET", "/metrics", headers))[0] != 401
        assert (await send(edge, "GET", "/metrics", {"x-api-key": new_key()}))[0] == 401


def test_a_file_of_keys_by_another_name_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(Fatal, match="ends in"):
        Keyring(make_settings(sidecar_api_keys=str(tmp_path / "keys")))
    assert Keyring(make_settings(sidecar_api_keys="/" + "k" * 5000)).required


async def test_keys_are_added_and_removed_while_the_bridge_runs_and_a_broken_file_changes_nothing(
    nc: Client, nats_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.keyring.LOOK_EVERY_S", 0.01)
    keys.add("one")
    with capture_logs() as logged:
        async with guarded(nats_url, keys) as edge:

            async def told(name: str, code: int) -> bool:
                return (await send(edge, "GET", "/api/requests/x", keys.bearer(name)))[0] == code

            def complained() -> int:
                return sum(entry["log_level"] == "error" for entry in logged)

            keys.add("two")
            await wait_until(lambda: told("two", 404))
            keys.path.write_text(f'[keys.one]\nsha256 = "{keys.of["one"]}"')
            await wait_until(lambda: complained() == 1)
            assert await told("one", 404)
            keys.remove("one")
            await wait_until(lambda: told("one", 401))
            keys.path.unlink()
            await wait_until(lambda: complained() == 2)
            assert await told("two", 404)
            keys.remove("two")
            await wait_until(lambda: told("two", 401))
    assert "keys.one.sha256" in str(logged)
    assert not any(key in str(logged) for key in keys.of.values())


async def test_a_watcher_whose_key_is_taken_away_sees_no_more(
    nc: Client, nats_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.keyring.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("bridge.live.LOOK_AGAIN_S", 0.1)
    keys.add("one", operator=True)
    keys.add("two", operator=True)
    async with guarded(nats_url, keys) as edge, edge.client.ws_connect("/ws") as feed:
        await feed.send_json({"key": keys.of["one"]})
        assert orjson.loads(await feed.receive_str())["v"] == 1
        keys.remove("one")
        async with asyncio.timeout(10):
            while (await feed.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert feed.close_code == 4401


async def test_openais_own_client_shows_its_key_and_understands_why_it_is_not_let_in(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor
) -> None:
    keys.add("shop", rpm=1, tenant="shop", priorities=["low"])
    await start({"anthropic": ScriptedProvider(answer("Blue."))})
    async with guarded(nats_url, keys) as edge:

        async def asked(key: str, **headers: str) -> Any:
            async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=key, max_retries=0) as client:
                return await client.chat.completions.create(
                    model="haiku", messages=[{"role": "user", "content": "Why?"}], extra_headers=headers
                )

        with pytest.raises(openai.AuthenticationError, match="this key is not known"):
            await asked(new_key())
        answered = await asked(keys.of["shop"], **{"X-Sidecar-Priority": "low"})
        assert answered.choices[0].message.content == "Blue."
        with pytest.raises(openai.RateLimitError) as limited:
            await asked(keys.of["shop"], **{"X-Sidecar-Priority": "low"})
        assert 50 < int(limited.value.response.headers["Retry-After"]) <= 62


# --- what it allows -------------------------------------------------------------------------


async def test_a_key_of_a_tenant_asks_for_it_alone(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor
) -> None:
    keys.add("shop", tenant="shop")
    keys.add("all")
    await start({"anthropic": ScriptedProvider(answer())})
    async with guarded(nats_url, keys) as edge:
        for named in ({"tenant": "shop"}, {}):
            _, reply, _ = await send(edge, "POST", "/api/chat", keys.bearer("shop"), body(**named))
            _, found, _ = await send(edge, "GET", f"/api/requests/{reply['id']}", keys.bearer("all"))
            assert found["tenant"] == "shop"
        other = await kind(edge, "POST", "/api/chat", keys.bearer("shop"), body(tenant="bank"))
        assert other == (403, "forbidden", "tenant bank: this key asks for shop alone")
        header = keys.bearer("shop") | {"X-Sidecar-Tenant": "bank"}
        assert await kind(edge, "POST", "/api/chat", header, body()) == other
        assert await kind(edge, "POST", "/api/route", keys.bearer("shop"), body(tenant="bank")) == other
        assert await kind(edge, "POST", "/api/chat", keys.bearer("all"), body(tenant="bank")) is None


async def test_another_tenants_request_looks_like_none(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor
) -> None:
    for name in ("shop", "bank"):
        keys.add(name, tenant=name)
    keys.add("boss", operator=True)
    await start({"anthropic": ScriptedProvider([Opened(), TextDelta("Well, "), Pause(60), *answer()[1:]])})
    async with guarded(nats_url, keys) as edge:
        asked = edge.client.post("/api/chat", headers=keys.bearer("shop"), data=body(stream=True))
        async with asked as stream:
            request_id = stream.headers["X-Sidecar-Request-Id"]
            path = f"/api/requests/{request_id}"
            unknown = await kind(edge, "GET", "/api/requests/none", keys.bearer("bank"))
            for method, where in [("GET", path), ("GET", f"{path}/events"), ("DELETE", path)]:
                status, type_, message = await kind(edge, method, where, keys.bearer("bank"))
                assert (status, type_, message.replace(request_id, "none")) == unknown
            for name in ("shop", "boss"):
                _, found, _ = await send(edge, "GET", path, keys.bearer(name))
                assert found["state"] in {"queued", "running"}
            assert (await send(edge, "DELETE", path, keys.bearer("shop")))[0] == 202


async def test_a_key_asks_with_its_priorities_alone(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor
) -> None:
    keys.add("night", priorities=["low", "medium"])
    await start({"anthropic": ScriptedProvider(answer())})
    async with guarded(nats_url, keys) as edge:
        header = keys.bearer("night")
        assert await kind(edge, "POST", "/api/chat", header, body(priority="low")) is None
        refused = (403, "forbidden", "priority critical: this key may ask with medium, low")
        assert await kind(edge, "POST", "/api/chat", header, body(priority="critical")) == refused
        assert await kind(edge, "POST", "/api/chat", header | {"X-Sidecar-Priority": "critical"}, body()) == refused


async def test_a_key_is_answered_by_its_models_alone_for_auto_and_by_name(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor
) -> None:
    keys.add("cheap", models=["haiku", served("gemini")])
    anthropic, groq = ScriptedProvider(answer()), ScriptedProvider(answer())
    await start({"anthropic": anthropic, "groq": groq})
    async with guarded(nats_url, keys) as edge:

        async def asked(path: str = "/api/chat", **fields: Any) -> Any:
            return await send(edge, "POST", path, keys.bearer("cheap"), body(**fields))

        assert (await asked(model="auto", prefer="speed"))[1]["model"] == "haiku"
        assert (await asked(model="claude-haiku-4-5"))[1]["model"] == "claude-haiku-4-5"
        for stream in (False, True):
            status, fields, _ = await asked(model=served("llama"), stream=stream)
            assert (status, fields["error"]["type"]) == (403, "forbidden")
            assert "is not among the models that may answer" in fields["error"]["message"]
        assert (await asked("/api/route", model=served("llama")))[0] == 403
        assert {one["model"] for one in (await asked("/api/route", model="auto"))[1]["candidates"]} == {"haiku"}
        assert (await asked(only=["haiku", "sonnet"]))[1]["error"]["message"].startswith(
            "only: sonnet: this key may use"
        )
    assert groq.calls == 0


async def test_a_key_sees_its_models_by_whichever_name_it_has_them(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor
) -> None:
    spelling = next(name for name in load_catalog().models["haiku"].also)
    keys.add("spelled", models=[spelling])
    await start({"anthropic": ScriptedProvider(answer())})
    async with guarded(nats_url, keys) as edge:
        assert (await send(edge, "POST", "/api/chat", keys.bearer("spelled"), body(model=spelling)))[0] == 200
        listed = (await send(edge, "GET", "/api/models", keys.bearer("spelled")))[1]["models"]
        assert [row["model"] for row in listed] == ["haiku"]
        listed = (await send(edge, "GET", "/v1/models", keys.bearer("spelled")))[1]["data"]
        assert [row["id"] for row in listed] == ["auto", "haiku"]


async def test_metrics_are_for_operators(nc: Client, nats_url: str, keys: Keys) -> None:
    keys.add("shop")
    keys.add("boss", operator=True)
    async with guarded(nats_url, keys) as edge:
        assert (await kind(edge, "GET", "/metrics", keys.bearer("shop")))[:2] == (403, "forbidden")
        assert (await send(edge, "GET", "/metrics", keys.bearer("boss")))[0] != 403


async def test_who_asks_too_often_is_told_when_to_come_back_whichever_bridge_it_asks(
    nc: Client, nats_url: str, keys: Keys
) -> None:
    keys.add("slow", rpm=2)
    keys.add("other")
    async with guarded(nats_url, keys) as one, guarded(nats_url, keys) as two:
        for edge in (one, two):
            assert (await kind(edge, "POST", "/api/chat", keys.bearer("slow"), body()))[0] == 503  # no sidecar runs
        status, fields, told = await send(one, "POST", "/api/chat", keys.bearer("slow"), body())
        assert (status, fields["error"]["type"]) == (429, "rate_limited")
        assert 0 <= int(told["Retry-After"]) - fields["error"]["retry_after_s"] < 1
        assert 50 < int(told["Retry-After"]) <= 62
        spellings = ("/api/chat%0A", "/%61pi/chat", "/api/batch%0A")  # the router knows them
        for path in ("/v1/chat/completions", "/v1/messages", "/api/batch", *spellings):
            assert (await send(two, "POST", path, keys.bearer("slow"), body()))[0] == 429
        assert (await send(one, "POST", "/api/route", keys.bearer("slow"), body()))[0] == 503  # no model is called
        assert (await send(one, "GET", "/api/requests/x", keys.bearer("slow")))[0] == 404  # reading is not counted
        assert (await kind(one, "POST", "/api/chat", keys.bearer("other"), body()))[0] == 503


async def test_a_batch_that_fits_into_no_minute_is_refused_for_good_and_one_that_does_is_taken(
    nc: Client, nats_url: str, keys: Keys
) -> None:
    keys.add("shop", rpm=3)
    keys.add("market", rpm=3)
    async with guarded(nats_url, keys) as edge:
        refused = await kind(edge, "POST", "/api/batch", keys.bearer("shop"), b"\n".join([body()] * 4))
        assert refused[:2] == (413, "too_large")
        taken = await send(edge, "POST", "/api/batch", keys.bearer("market"), b"\n".join([body()] * 3))
        assert taken[0] == 202


# --- pages of other sites -------------------------------------------------------------------


async def test_without_keys_no_other_sites_page_may_read_or_spend(nc: Client, nats_url: str) -> None:
    async with bridging(nats_url) as edge:
        own = edge.url.removeprefix("http://")
        for headers, status in [
            ({"Host": "evil.example"}, 403),
            ({"Host": f"evil.example:{own.rpartition(':')[2]}"}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": edge.url}, 200),
            ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
            ({}, 200),
        ]:
            assert (await send(edge, "GET", "/health", headers))[0] == status
            if status == 403:
                refused = await kind(edge, "POST", "/api/chat", headers, body())
                assert refused[:2] == (403, "forbidden")
                assert (await send(edge, "OPTIONS", "/api/chat", headers))[0] == 403


async def test_a_listed_page_may_and_reads_what_it_needs(nc: Client, nats_url: str) -> None:
    page = "https://app.example.org"
    async with bridging(nats_url, sidecar_cors_origins=page) as edge:
        asks = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-sidecar-cache",
        }
        async with edge.client.options("/api/chat", headers={"Origin": page} | asks) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == page
            assert "authorization" in response.headers["Access-Control-Allow-Headers"]
        async with edge.client.options("/api/chat", headers={"Origin": "http://evil.example"} | asks) as response:
            assert response.status == 400
            assert "Access-Control-Allow-Origin" not in response.headers
        status, _, told = await send(edge, "POST", "/api/chat", {"Origin": page}, body())
        assert (status, told["Access-Control-Allow-Origin"]) == (503, page)
        exposed = {name.strip() for name in told["Access-Control-Expose-Headers"].split(",")}
        assert {"X-Sidecar-Request-Id", "X-Sidecar-Cost-Usd", "Retry-After", "X-Should-Retry"} <= exposed
        assert (await send(edge, "POST", "/api/chat", {"Origin": "http://evil.example"}, body()))[0] == 403


async def test_with_keys_a_page_needs_one_and_reads_that_it_does(nc: Client, nats_url: str, keys: Keys) -> None:
    keys.add("page")
    async with guarded(nats_url, keys, sidecar_cors_origins="*") as edge:
        page = {"Origin": "https://app.example.org"}
        status, _, told = await send(edge, "POST", "/api/chat", page, body())
        assert (status, told["Access-Control-Allow-Origin"]) == (401, "*")
        host = {"Host": "sidecar.example.org"}
        assert (await send(edge, "POST", "/api/chat", page | host | keys.bearer("page"), body()))[0] == 503


@pytest.mark.parametrize(
    ("headers", "listed", "with_keys", "passes"),
    [
        ({"host": "localhost:8001", "origin": "http://localhost:8001"}, (), False, True),
        ({"host": "localhost:8001"}, (), False, True),
        ({"host": "localhost:8001", "origin": "https://app.example.org"}, ("https://app.example.org",), False, True),
        ({"host": "localhost:8001", "origin": "http://evil.example"}, (), False, False),
        ({"host": "evil.example", "origin": "http://evil.example"}, (), False, False),
        ({"host": "sidecar.example.org", "origin": "https://app.example.org"}, (), True, True),
    ],
)
async def test_a_websocket_passes_where_its_page_may_and_shows_its_key_later(
    headers: dict[str, str], listed: tuple[str, ...], with_keys: bool, passes: bool
) -> None:
    passed: list[Scope] = []
    sent: list[Message] = []

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    keyring = Keyring(make_settings(sidecar_api_keys=(key := new_key()) if with_keys else None))
    guards = Guards(endpoint, keyring=keyring, rates=KeyRates(Line(make_settings(), ""), keyring), origins=listed)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await guards({"type": "websocket", "path": "/ws", "headers": raw}, receive, send)
    assert (len(passed), [message["type"] for message in sent]) == ((1, []) if passes else (0, ["websocket.close"]))
    if with_keys:
        assert passed[0]["caller"] is NOBODY
        assert not any(NOBODY.may_see(tenant) for tenant in ("default", None))
        assert keyring.authenticate(key) == Caller("key-1", operator=True)
        assert keyring.authenticate("\udc00 none") is None


# --- what is told to nobody -----------------------------------------------------------------


async def test_a_key_is_in_no_log_no_answer_and_nothing_that_nats_keeps(
    nc: Client, nats_url: str, keys: Keys, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.add("shop", tenant="shop", rpm=3)
    planted = [keys.of["shop"], new_key()]
    await start({"anthropic": ScriptedProvider(answer())})
    said: list[str] = []

    def faulty(_: object) -> None:
        raise KeyError("as if we had a bug")

    with capture_logs() as logged:
        async with guarded(nats_url, keys) as edge:
            for key in planted:
                for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}, {"Authorization": key}):
                    for path, sent in (("/api/chat", body()), ("/api/chat", b"{"), ("/api/route", body(tenant="x"))):
                        status, fields, told = await send(edge, "POST", path, headers, sent)
                        said.append(f"{status} {fields} {dict(told)}")
            monkeypatch.setattr(questions, "decode_request", faulty)
            said.append(str(await send(edge, "POST", "/api/route", keys.bearer("shop"), body())))
            keys.path.write_text(f"{planted[0]}\n")
            await asyncio.sleep(0)
    kept = []
    for stream in subjects.STREAMS:
        found, _ = await jetstream.batch(nc, stream, {"next_by_subj": ">", "seq": 1, "batch": 1000})
        kept += [f"{message.subject} {message.headers} {message.body!r}" for message in found]
    assert {"200", "401", "403", "429", "500"} <= {one.split(maxsplit=1)[0].strip("(,") for one in said}
    assert any("llm.state.keys.shop" in one for one in kept)
    for key in planted:
        assert not [one for one in [*said, *kept, *map(str, logged)] if key in one or hashed(key) in one]
