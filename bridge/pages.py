"""The dashboard's files as they are shipped: read once, served from memory, and nothing else is reachable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""By the ending of a file's name; what ends otherwise is text."""
PAGE: Final = "index.html"
_METHODS: Final = ["GET", "HEAD"]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `etag` is of its content, so it is the same on every bridge of one version."""

    body: bytes
    media_type: str
    etag: str

    def answer(self, wanted: str | None) -> Response:
        """The file, or 304 where the client's copy (its `If-None-Match`) is the same."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if wanted is not None and {self.etag, "*"} & {tag.strip().removeprefix("W/") for tag in wanted.split(",")}:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def shipped_assets() -> Mapping[str, Asset]:
    """All files of `bridge/dashboard`, by their path in it."""
    files = _files(resources.files("bridge") / "dashboard", "")
    return MappingProxyType({path: _asset(path, file.read_bytes()) for path, file in files})


def _files(folder: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{path}{entry.name}/")
        else:
            yield path + entry.name, entry


def _asset(path: str, body: bytes) -> Asset:
    media_type = TYPES.get(path.rpartition(".")[2], "text/plain; charset=utf-8")
    return Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def pages() -> APIRouter:
    """`/` and `/assets/…`. They hold no data, so they need no key."""
    assets = shipped_assets()
    router = APIRouter()

    @router.api_route("/", methods=_METHODS, include_in_schema=False)
    async def page(request: Request) -> Response:
        """The dashboard."""
        return assets[PAGE].answer(request.headers.get("if-none-match"))

    @router.api_route("/assets/{path:path}", methods=_METHODS, include_in_schema=False)
    async def asset(request: Request, path: str) -> Response:
        """One of its files."""
        found = assets.get(path)
        if found is None:
            raise HTTPException(404)
        return found.answer(request.headers.get("if-none-match"))

    return router
