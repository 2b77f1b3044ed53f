"""The dashboard's files: what is served, how it is cached, and that nothing else is reachable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from yarl import URL

from bridge.pages import shipped_assets
from tests.bridge.edge import Edge

ROOT = Path(__file__).resolve().parents[2]
ASSETS = shipped_assets()


async def test_the_page_is_served_at_the_root_with_a_policy_that_lets_nothing_in_from_elsewhere(edge: Edge) -> None:
    async with edge.client.get("/") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "<h1>" in await response.text()
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy or "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_files_come_with_their_type_and_are_not_sent_again_to_who_has_them(edge: Edge) -> None:
    for name, media_type in (("main.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
        async with edge.client.get(f"/assets/{name}") as response:
            assert (response.status, response.content_type) == (200, media_type)
            assert await response.read() == ASSETS[name].body
        assert "no-store" not in response.headers["Cache-Control"]
    tag = response.headers["ETag"]
    for wanted in (tag, f'"other", W/{tag}', "*"):
        async with edge.client.get("/assets/icon.svg", headers={"If-None-Match": wanted}) as again:
            assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
    async with edge.client.get("/assets/icon.svg", headers={"If-None-Match": '"other"'}) as changed:
        assert changed.status == 200


async def test_head_says_what_get_would_without_a_body(edge: Edge) -> None:
    for path in ("/", "/assets/main.js"):
        async with edge.client.get(path) as whole, edge.client.head(path) as head:
            assert (head.status, await head.read()) == (200, b"")
            assert head.headers["Content-Length"] == str(len(await whole.read()))


async def test_nothing_else_is_reachable(edge: Edge) -> None:
    for path in (
        *("/assets/", "/assets/none.js", "/assets/vendor", "/assets/../pages.py", "/assets/%2e%2e/pages.py"),
        *("/assets/..%2fpages.py", "/assets//etc/passwd", "/assets/%2fetc%2fpasswd", "/assets/main.js%00"),
        *("/index.html", "/assets/index.html/", "/assets/./main.js%3f"),
    ):
        async with edge.client.get(URL(edge.url + path, encoded=True)) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (404, "not_found"), path


def test_the_page_names_no_other_place_and_has_nothing_inline() -> None:
    ours = {name: asset.body.decode() for name, asset in ASSETS.items() if not name.startswith("vendor/")}
    for name, text in ours.items():
        elsewhere = set(re.findall(r"(?:https?|wss?)://[^\s\"'<>]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not elsewhere, name
        assert "innerHTML" not in text, name
        assert "eval(" not in text, name
    page = ours["index.html"]
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", page)
    named = set(re.findall(r'(?:src|href)="(assets/[^"]+)"', page))
    assert named <= {f"assets/{name}" for name in ours}


def test_every_module_that_is_imported_is_shipped() -> None:
    for name, asset in ASSETS.items():
        if name.endswith(".js") and not name.startswith("vendor/"):
            for imported in re.findall(r"(?:from|import\()\s*\"\./([^\"]+)\"", asset.body.decode()):
                assert imported in ASSETS or imported.startswith("vendor/"), f"{name}: {imported}"


def test_the_graphs_library_was_fetched_with_its_licence() -> None:
    if "vendor/uPlot.esm.js" not in ASSETS:
        from tests.conftest import unavailable

        unavailable("uPlot is not there: `python hatch_build.py` fetches it from the npm registry")
    assert "vendor/uPlot.min.css" in ASSETS
    assert b"MIT License" in ASSETS["vendor/uPlot.LICENSE"].body


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NPM_CONFIG_REGISTRY": "http://127.0.0.1:1/"},  # what is not there is not fetched by a test
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {f"bridge/dashboard/{name}" for name in ASSETS} <= names
