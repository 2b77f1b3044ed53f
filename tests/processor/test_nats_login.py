"""NATS_URL and NATS_CREDS: a server that wants credentials takes ours, and a wrong one is told in one line."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import nkeys
import pytest

from processor import broker
from processor.bus import Bus
from processor.commands import connection
from processor.exits import Exit, Fatal
from processor.nats_login import login, server_urls
from tests.conftest import make_settings
from tests.processes import command
from tests.wait import wait_until

WRONG = {
    "missing": (None, "No such file"),
    "garbage": ("garbage\n", "no user JWT"),
    "cut": ("-----BEGIN NATS USER JWT-----\na\n------END NATS USER JWT------\n", "no user NKEY seed"),
    "no seed": (
        "-----BEGIN NATS USER JWT-----\na\n------END NATS USER JWT------\n"
        "-----BEGIN USER NKEY SEED-----\nSUnonsense\n------END USER NKEY SEED------\n",
        "seed is none",
    ),
}


def pair(prefix: int) -> tuple[nkeys.KeyPair, str, str]:
    """A key pair, its public key and its seed."""
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    keys = nkeys.from_seed(bytearray(seed))
    return keys, keys.public_key.rstrip(b"=").decode(), seed.decode()


def token(issuer: nkeys.KeyPair, issued_by: str, subject: str, **claims: Any) -> str:
    """A JWT as nsc makes it."""

    def part(fields: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()

    body = {"jti": os.urandom(8).hex(), "iat": 1, "iss": issued_by, "sub": subject, "name": "n", "nats": claims}
    text = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    return f"{text}.{base64.urlsafe_b64encode(issuer.sign(text.encode())).rstrip(b'=').decode()}"


async def test_a_server_that_wants_credentials_takes_ours(tmp_path: Path) -> None:
    operator, operator_id, _ = pair(nkeys.PREFIX_BYTE_OPERATOR)
    account, account_id, _ = pair(nkeys.PREFIX_BYTE_ACCOUNT)
    _, user_id, user_seed = pair(nkeys.PREFIX_BYTE_USER)
    unlimited = {"conn": -1, "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "leaf": -1}
    config = tmp_path / "nats.conf"
    config.write_text(
        f"operator: {token(operator, operator_id, operator_id, type='operator', version=2)}\n"
        "resolver: MEMORY\nresolver_preload: {\n"
        f"  {account_id}: {token(operator, operator_id, account_id, type='account', version=2, limits=unlimited)}\n}}\n"
    )
    limits = {"subs": -1, "data": -1, "payload": -1}
    (tmp_path / "creds").write_text(
        "-----BEGIN NATS USER JWT-----\n"
        f"{token(account, account_id, user_id, type='user', version=2, **limits)}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )
    server = await asyncio.create_subprocess_exec(
        str(broker.binary()), "-c", str(config), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(tmp_path)
    )
    try:
        ports = tmp_path / f"nats-server_{server.pid}.ports"
        await wait_until(lambda: ports.exists() and ports.read_bytes().endswith(b"}"))
        settings = make_settings(nats_url=json.loads(ports.read_text())["nats"][0], nats_creds=tmp_path / "creds")
        bus = Bus()
        assert settings.nats_url is not None
        await bus.connect(settings.nats_url, settings, name="test")
        await bus.settle()
        await bus.close()
        async with connection(settings) as nc:
            await nc.round_trip(2)
        with pytest.raises(Fatal, match="Authorization Violation"):
            async with connection(make_settings(nats_url=settings.nats_url)):
                raise AssertionError("it let us in")
    finally:
        server.terminate()
        await server.wait()


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_holds_no_credentials_is_told(name: str, tmp_path: Path) -> None:
    text, why = WRONG[name]
    if text is not None:
        (tmp_path / "creds").write_text(text)
    with pytest.raises(Fatal, match=rf"NATS_CREDS: .*creds: .*{why}") as told:
        login(make_settings(nats_creds=tmp_path / "creds"))
    assert told.value.code == Exit.USAGE


@pytest.mark.parametrize(
    "url",
    ["nats://127.0.0.1:port", "nats://127.0.0.1:99999", "nats://[::1", "http://127.0.0.1:4222", "", "nats://a,nats://"],
)
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(Fatal, match="NATS_URL: ") as told:
        server_urls(url)
    assert told.value.code == Exit.USAGE


def test_an_address_may_be_several_and_short() -> None:
    assert server_urls("nats://a:1, b,tls://c:2") == ["nats://a:1", "b", "tls://c:2"]


@pytest.mark.parametrize("arguments", [["processor"], ["dead", "list"], ["ask", "hi"]])
async def test_commands_tell_it_in_one_line(arguments: list[str], nats_url: str, tmp_path: Path) -> None:
    (tmp_path / "creds").write_text("garbage")
    for told in (
        await command(*arguments, NATS_URL=nats_url, NATS_CREDS=str(tmp_path / "creds")),
        await command(*arguments, NATS_URL="nats://user:secret@127.0.0.1:port"),
    ):
        assert (told.code, len(told.err.splitlines())) == (2, 1), told.err
        assert "secret" not in told.err


async def test_check_tells_it_as_a_finding(nats_url: str, tmp_path: Path) -> None:
    told = await command("check", NATS_URL=nats_url, NATS_CREDS=str(tmp_path / "missing"))
    assert (told.code, "NATS_CREDS" in told.out, "Traceback" in told.err) == (1, True, False)
