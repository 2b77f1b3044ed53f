"""The graphs' library, fetched at installation: from the registry npm would use, verified, never in the way."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import hatch_build
from hatch_build import KEPT, MARK, REGISTRY, Unverified, fetch, provide, registry


def package(text: bytes = b"code") -> bytes:
    """An npm package with the files that are kept, and one that is not."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (*KEPT, "../../outside.js"):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return packed.getvalue()


def integrity(packed: bytes) -> str:
    return base64.b64encode(hashlib.sha512(packed).digest()).decode()


PACKAGE = package()


@pytest.fixture
def npm() -> Iterator[str]:
    """A registry on loopback that has the package."""

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == f"/uplot/-/uplot-{hatch_build.VERSION}.tgz"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(PACKAGE if known else b"")

        def log_message(self, *_: object) -> None:
            """Nothing is said."""

    with HTTPServer(("127.0.0.1", 0), Registry) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        serving.join()


def test_the_registry_is_the_one_that_npm_would_use(tmp_path: Path) -> None:
    project, own = tmp_path / "project", tmp_path / "own"
    assert registry({}, project, own) == REGISTRY
    own.write_text("# mine\n@scope:registry=https://scope.example/\nregistry = https://own.example/npm\n", "utf-8")
    assert registry({}, project, own) == "https://own.example/npm/"
    project.write_text('registry="https://project.example/"\n', "utf-8")
    assert registry({}, project, own) == "https://project.example/"
    assert registry({"npm_config_registry": "https://env.example"}, project, own) == "https://env.example/"
    assert registry({"NPM_CONFIG_REGISTRY": "https://env.example/"}, project, own) == "https://env.example/"


def test_what_is_needed_is_kept_with_its_licence_and_nothing_else(npm: str, tmp_path: Path) -> None:
    fetch(npm, tmp_path / "vendor", sha512=integrity(PACKAGE))
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {f"vendor/{name}" for name in ("uPlot.esm.js", "uPlot.min.css", "uPlot.LICENSE", MARK)}


def test_another_package_than_the_one_that_was_checked_is_not_kept(npm: str, tmp_path: Path) -> None:
    with pytest.raises(Unverified):
        fetch(npm, tmp_path / "vendor", sha512=integrity(package(b"changed")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["nowhere/", ""])
def test_an_installation_goes_on_without_the_registry_and_says_so(
    npm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", npm + path if path else "http://127.0.0.1:1/")
    told = list[str]()
    provide(told.append, tmp_path / "vendor")
    assert "no graphs" in told[0]
    assert "python hatch_build.py" in told[0]


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:1/")
    (tmp_path / MARK).touch()
    provide(pytest.fail, tmp_path)
