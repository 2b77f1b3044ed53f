"""Where SDKs and HTTP stacks end: what comes out is ours."""

from __future__ import annotations

import asyncio
import zlib
from datetime import UTC, datetime
from itertools import pairwise

import aiohttp
import httpx
import pytest

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
    ("layers", "expected"),
    [
        ((httpx.ConnectTimeout("renamed"), aiohttp.ServerDisconnectedError()), ConnectionFailed),
        ((httpx.ConnectError("renamed"), aiohttp.SocketTimeoutError()), TimedOut),
        (
            (ConnectionError(), httpx.ConnectTimeout("x"), aiohttp.ConnectionTimeoutError(), TimeoutError()),
            ConnectionFailed,
        ),
        ((aiohttp.ConnectionTimeoutError(), TimeoutError(), asyncio.CancelledError()), ConnectionFailed),
        ((httpx.ConnectTimeout("native"), TimeoutError()), ConnectionFailed),
        ((httpx.ReadTimeout("native"), TimeoutError()), TimedOut),
        ((aiohttp.ClientOSError(), TimeoutError(110, "ETIMEDOUT, of a connection that stood")), TimedOut),
    ],
)
def test_the_innermost_cause_counts_because_layers_rename_it(
    layers: tuple[BaseException, ...], expected: type[ProviderError]
) -> None:
    assert type(transport_error(chain(*layers), opened=False)) is expected


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
