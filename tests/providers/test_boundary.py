"""Where SDKs and HTTP stacks end: what comes out is ours."""

from __future__ import annotations

import asyncio
import zlib
from datetime import UTC, datetime
from itertools import pairwise
from socket import gaierror
from ssl import SSLCertVerificationError, SSLError
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey

from providers import errors
from providers.boundary import (
    Call,
    retry_after_seconds,
    safe_message,
    transport_error,
    vendor_boundary,
)
from providers.errors import BadResponse, ConnectionFailed, ProviderError, StreamCut, TimedOut


@pytest.mark.parametrize(
    ("error", "opened", "expected"),
    [
        (ConnectionRefusedError(), False, ConnectionFailed),
        (httpx.ConnectError("x"), False, ConnectionFailed),
        (httpx.ConnectTimeout("x"), False, ConnectionFailed),
        (aiohttp.ConnectionTimeoutError(), False, ConnectionFailed),
        (aiohttp.ServerDisconnectedError(), False, ConnectionFailed),
        (aiohttp.ClientPayloadError(), True, StreamCut),
        (httpx.RemoteProtocolError("x"), True, StreamCut),
        (ConnectionResetError(), True, StreamCut),
        (aiohttp.SocketTimeoutError(), True, TimedOut),
        (httpx.ReadTimeout("x"), False, TimedOut),
        (TimeoutError(), False, TimedOut),
        (httpx.DecodingError("x"), False, BadResponse),
    ],
)
def test_transport_errors_of_every_stack(error: Exception, opened: bool, expected: type[ProviderError]) -> None:
    assert type(transport_error(error, opened=opened)) is expected


def chain(*layers: BaseException) -> BaseException:
    """The first, with each next one as the cause of the one before."""
    for above, below in pairwise(layers):
        above.__cause__ = below
    return layers[0]


@pytest.mark.parametrize(
    ("layers", "expected", "unsent"),
    [
        ((httpx.ConnectTimeout("renamed"), aiohttp.ServerDisconnectedError()), ConnectionFailed, False),
        ((httpx.ConnectError("renamed"), aiohttp.ClientOSError(), ConnectionResetError()), ConnectionFailed, False),
        ((httpx.ConnectError("renamed"), aiohttp.SocketTimeoutError()), TimedOut, False),
        (
            (ConnectionError(), httpx.ConnectTimeout("x"), aiohttp.ConnectionTimeoutError(), TimeoutError()),
            ConnectionFailed,
            True,
        ),
        ((aiohttp.ConnectionTimeoutError(), TimeoutError(), asyncio.CancelledError()), ConnectionFailed, True),
        ((httpx.ConnectTimeout("native"), TimeoutError()), ConnectionFailed, True),
        ((httpx.ReadTimeout("native"), TimeoutError()), TimedOut, False),
        ((aiohttp.ClientOSError(), TimeoutError(110, "ETIMEDOUT, of a connection that stood")), TimedOut, False),
        ((ConnectionError("the SDK's own"), ValueError("no cause of a transport's")), ConnectionFailed, False),
    ],
)
def test_the_innermost_cause_counts_because_layers_rename_it(
    layers: tuple[BaseException, ...], expected: type[ProviderError], unsent: bool
) -> None:
    mapped = transport_error(chain(*layers), opened=False)
    assert type(mapped) is expected
    assert mapped.unsent is unsent


KEY_OF_CONNECTION: Any = ConnectionKey("x.org", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientConnectorError(KEY_OF_CONNECTION, ConnectionRefusedError()),
        aiohttp.ClientConnectorDNSError(KEY_OF_CONNECTION, gaierror()),
        aiohttp.ClientConnectorSSLError(KEY_OF_CONNECTION, SSLError()),
        aiohttp.ClientConnectorCertificateError(KEY_OF_CONNECTION, SSLCertVerificationError()),
        aiohttp.ClientProxyConnectionError(KEY_OF_CONNECTION, ConnectionResetError()),
        aiohttp.ConnectionTimeoutError(),
        aiohttp.InvalidUrlClientError("nonsense"),
        httpx.ConnectError("x"),
        httpx.ConnectTimeout("x"),
        ConnectionRefusedError(),
        gaierror(),
    ],
)
def test_without_a_connection_the_call_was_never_sent(error: Exception) -> None:
    mapped = transport_error(error, opened=False)
    assert isinstance(mapped, ConnectionFailed)
    assert mapped.unsent


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(),
        aiohttp.SocketTimeoutError(),
        httpx.ReadError("x"),
        httpx.WriteError("x"),
        httpx.RemoteProtocolError("x"),
        ConnectionResetError(),
        BrokenPipeError(),
        TimeoutError(),
        EOFError(),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
def test_once_connected_the_vendor_may_have_seen_the_call(error: Exception, opened: bool) -> None:
    mapped = transport_error(error, opened=opened)
    assert mapped is not None
    assert not mapped.unsent


def test_of_the_kinds_of_error_only_unsupported_is_never_sent_by_itself() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ProviderError)]
    assert [kind for kind in kinds if kind("x").unsent] == [errors.Unsupported]
    assert ConnectionFailed("x", unsent=True).unsent


def test_in_the_middle_of_an_answer_no_error_is_one_of_connecting() -> None:
    assert type(transport_error(aiohttp.ConnectionTimeoutError(), opened=True)) is TimedOut
    assert type(transport_error(httpx.ConnectError("renamed"), opened=True)) is StreamCut


@pytest.mark.parametrize(
    ("error", "below", "expected"),
    [
        (TimeoutError(), asyncio.CancelledError(), TimedOut),  # as asyncio.timeout raises it
        (httpx.DecodingError("gzip"), zlib.error("incorrect header check"), BadResponse),
    ],
)
def test_what_lies_below_the_transport_says_less(
    error: Exception, below: BaseException, expected: type[ProviderError]
) -> None:
    error.__cause__ = below
    assert type(transport_error(error, opened=False)) is expected


@pytest.mark.parametrize("error", [KeyError("bug"), asyncio.CancelledError()])
def test_a_bug_and_a_cancellation_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)), vendor_boundary(Call()):
        raise error


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"Retry-After": "Mon, 23 Nov 2026 13:00:30 +0100"}, 30.0),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "nan", "retry-after": "9"}, 9.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Mon, 23 Nov 99999999999999999999 12:00:30 GMT"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, datetime(2026, 11, 23, 12, tzinfo=UTC)) == seconds


def test_a_message_for_clients_is_short_on_one_line_and_without_the_key() -> None:
    assert safe_message("bad\nkey  sk-1", "sk-1") == "bad key [key]"
    assert len(safe_message("x" * 1000, "")) == 500
