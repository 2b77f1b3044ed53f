"""Server-sent events, however the bytes are cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import sse
from providers.errors import BadResponse
from providers.sse import data_of_events


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def parsed(*parts: bytes) -> list[bytes]:
    return [data async for data in data_of_events(chunks(*parts))]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": ping\n\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\n\ndata: cut off", [b"a"]),
        (b"data: a\n\ndata: cut off\n", [b"a"]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
async def test_events(text: bytes, data: list[bytes]) -> None:
    assert await parsed(text) == data


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=5), st.data())
async def test_it_does_not_matter_where_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        # The byte after each text keeps a CR from being read as half of a CR LF at the very end.
        stream = b"".join(b"data: " + text.encode() + end + end for text in texts) + b": end\n"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        edges = [0, *cuts, len(stream)]
        parts = [stream[a:b] for a, b in pairwise(edges)]
        assert await parsed(*parts) == [text.encode() for text in texts]


async def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(BadResponse):
        await parsed(b"data: ", *[b"x" * 30] * 5)
    with pytest.raises(BadResponse):
        await parsed(*[b"data: " + b"x" * 30 + b"\n"] * 5)
