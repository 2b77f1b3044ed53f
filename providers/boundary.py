"""Where SDKs and HTTP stacks end: their errors, headers and messages become ours."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from providers.base import Json
from providers.errors import (
    BadCredentials,
    BadResponse,
    ConnectionFailed,
    InvalidPrompt,
    ModelGone,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    StreamCut,
    TimedOut,
    VendorError,
)

MAX_MESSAGE = 500
_STACKS: Final = frozenset({"aiohttp", "httpx", "httpx2", "httpcore", "httpcore2", "httpx_aiohttp"})
_CONNECTING: Final = frozenset(
    [
        "ClientConnectorError",
        "ConnectionTimeoutError",
        "ClientHttpProxyError",
        "InvalidUrlClientError",
        "ConnectError",
        "ConnectTimeout",
        "ConnectionRefusedError",
        "gaierror",
    ]
)
"""What aiohttp, the httpx family and the sockets below them raise while there is no connection yet."""


@dataclass(slots=True)
class Call:
    """How far one call has come: `opened` once the vendor answered 200."""

    opened: bool = False


@contextmanager
def vendor_boundary(call: Call) -> Iterator[None]:
    """Let nothing out but `ProviderError` and cancellation, where the error is the transport's.

    SDK exceptions are the adapter's to map; an error that is neither passes as it is: a bug of ours.
    """
    try:
        yield
    except (ProviderError, asyncio.CancelledError):
        raise
    except Exception as error:
        mapped = transport_error(error, opened=call.opened)
        if mapped is None:
            raise
        raise mapped from error


def transport_error(error: BaseException, *, opened: bool) -> ProviderError | None:
    """The transport's error as ours, or None if it is no transport error.

    It is told by the module its class comes from, because the stacks are imported with the SDKs, late, and one SDK
    may raise another stack's errors. With `opened`, the answer had begun: the stream was cut. Where there was no
    connection yet, the call is `unsent`.
    """
    layers = _layers(error)
    if not layers:
        return None
    root = layers[-1]
    name = type(root).__name__
    if not opened and _connecting(layers):
        return ConnectionFailed(f"the vendor cannot be reached ({name})", unsent=True)
    if isinstance(root, TimeoutError) or "Timeout" in name:
        where = "in the middle of its answer" if opened else "before its answer began"
        return TimedOut(f"the vendor was silent for too long {where}")
    if opened:
        return StreamCut("the connection to the vendor broke in the middle of its answer")
    if name in {"DecodingError", "ContentTypeError", "InvalidURL"}:
        return BadResponse(f"the vendor's answer cannot be read ({name})")
    return ConnectionFailed(f"the connection to the vendor broke before its answer ({name})")


def _layers(error: BaseException) -> list[BaseException]:
    """The transport errors in the chain of causes, the innermost last: that one says the most.

    Each layer renames the one below it, and not always rightly: a dropped connection becomes a ConnectTimeout. What
    lies below the transport (the cancellation inside a timeout, zlib's error inside a decoding error) says less.
    """
    layers: list[BaseException] = []
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, OSError | EOFError) or _of_a_stack(step):
            layers.append(step)
        step = step.__cause__
    return layers


def _of_a_stack(error: BaseException) -> bool:
    return not _STACKS.isdisjoint(cls.__module__.partition(".")[0] for cls in type(error).__mro__)


def _connecting(layers: list[BaseException]) -> bool:
    """Whether there was no connection yet, by the word of the innermost stack: a bare OSError does not know."""
    told = next(filter(_of_a_stack, reversed(layers)), layers[-1])
    return not _CONNECTING.isdisjoint(cls.__name__ for cls in type(told).__mro__)


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """`retry-after-ms` or `retry-after` (seconds or an HTTP date, RFC 9110 §10.2.3) as seconds from `now`.

    What cannot be read is as if it were not there.
    """
    lower = {k.lower(): v for k, v in headers.items()}
    if (milliseconds := finite(lower.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    told = lower.get("retry-after", "")
    if (seconds := finite(told)) is not None:
        return seconds
    return _seconds_until(told, now or datetime.now(UTC))


def finite(text: str) -> float | None:
    """A number of seconds as text, at least 0; None for what is none, infinity too."""
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _seconds_until(date: str, now: datetime) -> float | None:
    try:
        then = parsedate_to_datetime(date)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        return None


def safe_message(text: str, api_key: str) -> str:
    """A vendor's message as a client may read it: without our key, on one line, at most 500 characters."""
    masked = text.replace(api_key, "[key]") if api_key else text
    return " ".join(masked.split())[:MAX_MESSAGE]


def error_body(data: bytes) -> Mapping[str, Json]:
    """The error object of an error answer, out of its envelope; what is not JSON becomes its message."""
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, list) and value:
        value = value[0]
    inner = value.get("error") if isinstance(value, Mapping) else None
    if isinstance(inner, Mapping):
        return inner
    return {"message": inner if isinstance(inner, str) else data.decode("utf-8", "replace").strip()}


_BY_STATUS: Final[Mapping[int, type[ProviderError]]] = {
    401: BadCredentials,
    402: OutOfCredit,
    403: BadCredentials,
    404: ModelGone,
    408: TimedOut,
    409: VendorError,
    413: PromptTooLarge,
    424: VendorError,
    429: RateLimited,
    498: Overloaded,
    499: VendorError,
    503: Overloaded,
    504: TimedOut,
    529: Overloaded,
}
"""498 is Groq's flex capacity, 529 Anthropic's overload; the others are HTTP's own."""


def kind_by_status(status: int) -> type[ProviderError]:
    """Which error of ours an HTTP error status is, where its body says no more."""
    return _BY_STATUS.get(status) or (InvalidPrompt if 400 <= status < 500 else VendorError)
