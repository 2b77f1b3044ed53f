"""What every answer tells a browser: guess nothing, keep nothing, run only what is ours, show it in no frame. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STATIC: Final = "/assets/"
"""Files of the page at `/`, which hold no data and may be kept."""

_ALWAYS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NO_PAGE: Final = "default-src 'none'; frame-ancestors 'none'"
_PAGE: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""In `connect-src`, 'self' is also the WebSocket of the same host and port."""


def page_headers(path: str) -> Mapping[str, str]:
    """The headers of an answer at `path`."""
    is_page = path == "/" or path.startswith(STATIC)
    keep = {} if path.startswith(STATIC) else {"Cache-Control": "no-store"}
    return _ALWAYS | keep | {"Content-Security-Policy": _PAGE if is_page else _NO_PAGE}
