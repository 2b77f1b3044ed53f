"""Who is let in, before a body is read: whether it comes from where it may, with a key that is known, not too often."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bridge.callers import ANYBODY, NOBODY, Caller
from bridge.forms import error_form
from bridge.keyring import Keyring
from bridge.origins import allowed_host, allowed_origin
from bridge.page_headers import STATIC
from bridge.rates import KeyRates
from processor.errors import ErrorType, RequestError

OPEN: Final = frozenset({"/", "/health", "/ready", "/favicon.ico"})
"""What anybody may read: it holds no data."""
FOR_OPERATORS: Final = frozenset({"/metrics"})
_FREE: Final = frozenset({"/v1/messages/count_tokens", "/api/route"})
"""What calls no model, and is not counted; coding agents count tokens often. All else that is posted is counted: the
router takes more spellings of a path for one than can be listed here, `/api/chat%0A` among them."""
_EXPOSED: Final = (
    *(f"X-Sidecar-{name}" for name in ("Request-Id", "Model", "Provider", "Cost-Usd", "Route", "Cached", "Attempts")),
    *("X-Sidecar-Ignored", "X-Sidecar-Moved", "X-Request-Id", "Request-Id"),
    *("Retry-After", "X-Should-Retry"),
)


class Guards:
    """Middleware: leaves in `scope["caller"]` who it is that asks, or refuses in the form of the path's surface.

    Without keys only this machine may ask, so a page of another site must not make its browser do so. With keys the
    key decides, which no foreign page has. A WebSocket's key comes in its first message, which its endpoint reads.
    """

    def __init__(self, app: ASGIApp, *, keyring: Keyring, rates: KeyRates, origins: Collection[str]) -> None:
        self._app = app
        self._keyring = keyring
        self._rates = rates
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return await self._app(scope, receive, send)
        try:
            await self._let_in(scope)
        except RequestError as error:
            await _refuse(error, scope, receive, send)
            return None
        return await self._app(scope, receive, send)

    async def _let_in(self, scope: Scope) -> None:
        """Raises RequestError where it is not let in."""
        headers = Headers(scope=scope)
        if not self._keyring.required:
            self._check_page(headers)
            scope["caller"] = ANYBODY
        elif scope["type"] == "websocket" or _is_open(scope):
            scope["caller"] = NOBODY
        else:
            scope["caller"] = caller = self._caller(headers)
            if scope["path"] in FOR_OPERATORS and not caller.operator:
                raise RequestError(ErrorType.FORBIDDEN, f"{scope['path']} is for keys of operators alone")
            if _spends(scope):
                await self._rates.count(caller)

    def _check_page(self, headers: Headers) -> None:
        if not allowed_host(headers):
            why = "without SIDECAR_API_KEYS the bridge answers to localhost alone, and the Host header is another"
            raise RequestError(ErrorType.FORBIDDEN, why)
        if not allowed_origin(headers, self._origins):
            why = (
                f"pages of {headers['origin'][:200]} may not use the bridge: SIDECAR_CORS_ORIGINS lists those that may"
            )
            raise RequestError(ErrorType.FORBIDDEN, why)

    def _caller(self, headers: Headers) -> Caller:
        presented = presented_keys(headers)
        for key in presented:
            if (caller := self._keyring.authenticate(key)) is not None:
                return caller
        what = (
            "this key is not known" if presented else "a key is needed, as `Authorization: Bearer …` or `x-api-key: …`"
        )
        raise RequestError(ErrorType.UNAUTHORIZED, what)


def presented_keys(headers: Headers) -> list[bytes]:
    """The keys that a request brings: OpenAI's clients send one as a bearer, Anthropic's as `x-api-key`."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = [bearer] if scheme.lower() == "bearer" else []
    # Latin-1 gives back the bytes that were sent, whatever they are.
    sent = [key.strip(" \t").encode("latin-1") for key in [*keys, headers.get("x-api-key", "")]]
    return [key for key in sent if key]


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in OPEN or path.startswith(STATIC) or scope["method"] == "OPTIONS"


def _spends(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"] not in _FREE


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
        return

    is_unknown = error.type is ErrorType.UNAUTHORIZED
    challenge = {"WWW-Authenticate": 'Bearer realm="sidecar"'} if is_unknown else {}
    await error_form(scope)(error, headers=challenge)(scope, receive, send)


def cross_origin(origins: Collection[str]) -> dict[str, Any]:
    """What Starlette's CORS middleware is told: which pages may use the bridge, and what they may read of an answer."""
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST", "DELETE", "HEAD"],
        "allow_headers": ["*"],
        "expose_headers": list(_EXPOSED),
        "allow_private_network": True,
        "max_age": 600,
    }
