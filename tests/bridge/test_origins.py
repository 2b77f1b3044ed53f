"""Which Host and Origin a bridge without keys answers to, decided; and what browsers are told."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from bridge.origins import allowed_host, allowed_origin, is_loopback
from bridge.page_headers import page_headers

ports = st.just("") | st.integers(1, 65535).map(lambda port: f":{port}")


def headers(*fields: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1", "replace")) for name, value in fields])


@given(st.ip_addresses(v=4), ports)
def test_an_ipv4_host_is_loopback_where_the_address_is(address: IPv4Address, port: str) -> None:
    assert is_loopback(f"{address}{port}") == address.is_loopback


@given(st.ip_addresses(v=6), ports)
def test_an_ipv6_host_is_loopback_where_the_address_is(address: IPv6Address, port: str) -> None:
    assert is_loopback(f"[{address}]{port}") == address.is_loopback


@given(st.text(max_size=40))
def test_no_text_is_loopback_by_mistake(host: str) -> None:
    if is_loopback(host):
        name = urlsplit(f"//{host}").hostname
        assert name in {"localhost", "::1"} or str(name).startswith("127.")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8001", "127.0.0.1:8001", "127.9.9.9", "[::1]:8001", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    assert allowed_host(headers(("host", host)))


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil@localhost",
            "localhost@evil.example",
        ),
        *(
            "localhost/",
            "localhost:x",
            "localhost:99999",
            "",
            "0.0.0.0",
            "2130706433",
            "[::1",
            "10.0.0.1",
            "localhost.",
        ),
    ],
)
def test_names_that_are_not_this_machines(host: str) -> None:
    assert not allowed_host(headers(("host", host)))
    assert not allowed_host(headers(("host", "localhost"), ("host", host)))


OURS = ("host", "localhost:8001")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8001", True),
        ("http://LOCALHOST:8001", True),
        ("https://app.example.org", True),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("http://app.example.org", False),
        ("https://app.example.org.evil.example", False),
        ("file://localhost:8001", False),
        ("null", False),
        ("", False),
        ("*", False),
    ],
)
def test_a_page_is_let_in_where_it_is_the_bridges_own_or_listed(origin: str, allowed: bool) -> None:
    assert allowed_origin(headers(OURS, ("origin", origin)), {"https://app.example.org"}) is allowed
    assert not allowed_origin(headers(OURS, ("origin", origin), ("origin", "http://evil.example")), set())


def test_who_is_no_page_names_no_origin() -> None:
    assert allowed_origin(headers(OURS), ())


def test_the_page_may_run_what_the_bridge_serves_and_nothing_else() -> None:
    policy = page_headers("/")["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(
        policy.split("; ")
    )
    assert page_headers("/api/chat")["Content-Security-Policy"].startswith("default-src 'none';")


def test_all_but_files_that_hold_no_data_are_kept_by_nobody() -> None:
    assert page_headers("/assets/page.js").get("Cache-Control") is None
    assert {page_headers(path)["Cache-Control"] for path in ("/", "/api/models", "/nope")} == {"no-store"}
