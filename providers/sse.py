"""Server-sent events out of raw bytes, decoded once, without a vendor's typed layer."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from providers.errors import BadResponse

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""A single event larger than this is no model's output; it bounds the buffer."""


async def data_of_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the `data` of each event, comments and other fields left out.

    Follows the WHATWG rules where vendors differ: LF, CR LF or CR line ends (a CR may be split from its LF by a
    chunk), several `data` lines joined by LF, a leading byte-order mark skipped. An event that the end of the
    stream cuts off is dropped: a stream counts as complete only when its terminal event came whole.

    Raises:
        BadResponse: an event over `MAX_EVENT_BYTES`.
    """
    buffer = bytearray()
    data: list[bytes] = []
    size = 0
    first = True
    async for chunk in chunks:
        buffer += chunk
        if first and len(buffer) >= 3:
            first = False
            if buffer.startswith(b"\xef\xbb\xbf"):
                del buffer[:3]
        complete = _complete_lines(buffer)
        for line in complete:
            if not line:
                if data:
                    yield data[0] if len(data) == 1 else b"\n".join(data)
                    data, size = [], 0
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                data.append(value)
                size += len(value)
        if size + len(buffer) > MAX_EVENT_BYTES:
            raise BadResponse(f"the vendor sent an event of over {MAX_EVENT_BYTES} bytes")
    if data and buffer == b"\r":
        yield b"\n".join(data)


def _complete_lines(buffer: bytearray) -> list[bytes]:
    """Take the lines that have ended out of `buffer`; a trailing CR waits for the LF that may follow."""
    end = max(buffer.rfind(b"\n"), buffer.rfind(b"\r", 0, max(0, len(buffer) - 1)))
    if end < 0:
        return []
    block = bytes(buffer[: end + 1])
    del buffer[: end + 1]
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = block.split(b"\n")
    lines.pop()
    return lines
