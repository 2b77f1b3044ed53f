"""Where and as whom to connect: NATS_URL and NATS_CREDS, checked before nats-py sees them, which hangs at bad ones."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import nats.aio.client
import nats.errors

from processor.config import Settings, shown
from processor.exits import Exit, Fatal

_JWT = re.compile(r"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
_SEED = re.compile(r"-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+")
_SCHEMES = ("nats", "tls", "ws", "wss")


class BadCredentials(nats.errors.InvalidUserCredentialsError):
    """The message says what is wrong; never what is in the file."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return self.why


class Login(TypedDict, total=False):
    """The arguments of nats-py's `connect` that say who connects."""

    user_jwt_cb: Callable[[], bytes]
    signature_cb: Callable[[str], bytes]


def server_urls(url: str) -> list[str]:
    """The URLs of NATS_URL, of which there may be several with commas between. Raises Fatal, naming a wrong one."""
    urls = [one.strip() for one in url.split(",")]
    for one in urls:
        scheme, colon, _ = one.partition("://")
        try:
            nats.aio.client.Client._parse_server_uri(one)
        except nats.errors.Error:
            known = False
        else:
            known = not colon or scheme in _SCHEMES
        if not known:
            raise Fatal(f"NATS_URL: {shown(one)!r} is no address such as nats://host:4222", Exit.USAGE)
    return urls


def login(settings: Settings) -> Login:
    """Who connects, by NATS_CREDS. Raises Fatal where the file is none. It is read again at every reconnection."""
    path = settings.nats_creds
    if path is None:
        return {}
    try:
        _sign(path, "")
    except (BadCredentials, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Fatal(f"NATS_CREDS: {path}: {why}", Exit.USAGE) from error
    return {
        "user_jwt_cb": lambda: _part(path, _JWT, "user JWT").encode(),
        "signature_cb": lambda nonce: _sign(path, nonce),
    }


def _sign(path: Path, nonce: str) -> bytes:
    import nkeys

    _part(path, _JWT, "user JWT")
    seed = _part(path, _SEED, "user NKEY seed")
    try:
        signature: bytes = nkeys.from_seed(bytearray(seed.encode())).sign(nonce.encode())
    except (nkeys.NkeysError, ValueError) as error:
        raise BadCredentials("its user NKEY seed is none") from error
    return base64.b64encode(signature)


def _part(path: Path, part: re.Pattern[str], name: str) -> str:
    found = part.search(path.read_text("utf-8", "replace"))
    if found is None:
        raise BadCredentials(f"it has no {name}; it is no credentials file of NATS")
    return found.group(1)
