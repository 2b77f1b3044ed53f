"""Which Host and which Origin a bridge without keys answers to: this machine's own pages, and those listed. Pure."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Collection
from typing import Protocol
from urllib.parse import urlsplit


class HeaderFields(Protocol):
    """Headers of a request, such as `starlette.datastructures.Headers`."""

    def getlist(self, key: str) -> list[str]: ...


def is_loopback(host: str) -> bool:
    """Whether a Host header's value names this machine in a way that no DNS server decides on."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname
        _ = parts.port  # raises for what is no port
    except ValueError:
        return False
    if name is None or parts.netloc != host or "@" in host:
        return False
    if name == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


def allowed_host(headers: HeaderFields) -> bool:
    """Whether the request was meant for this machine by name. A page whose DNS was turned to us (rebinding) was not.

    Who sends no Host is no browser.
    """
    return all(is_loopback(host) for host in headers.getlist("host"))


def allowed_origin(headers: HeaderFields, listed: Collection[str]) -> bool:
    """Whether a request comes from the bridge's own page, from one of the `listed` origins, or from no page at all.

    Every browser names the page's origin in a WebSocket's handshake, and in whatever is not merely read.
    """
    hosts = {host.lower() for host in headers.getlist("host")}
    return all(origin in listed or _address(origin) in hosts for origin in headers.getlist("origin"))


def _address(origin: str) -> str | None:
    scheme, separator, address = origin.partition("://")
    return address.lower() if separator and scheme in {"http", "https"} else None
