"""The content of a message: text, images, tool calls and tool results, each with its bounds."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

MAX_TEXT_CHARS = 1_000_000
"""Of all text in a request together: about 250,000 tokens."""
MAX_IMAGE_CHARS = 6 * 1024 * 1024

TOO_LARGE = "too_large"
"""The pydantic error type that becomes `too_large`."""

TOKEN = r"^[A-Za-z0-9_-]{1,64}$"
Token = Annotated[str, StringConstraints(pattern=TOKEN)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/@-]{1,128}$")]
LongText = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]

_MAGIC = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(Model):
    type: Literal["text"]
    text: LongText


class ImagePart(Model):
    """A picture: `data` (base64) with its `media_type`, or an http(s) `url`."""

    type: Literal["image"]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"] | None = None
    data: str | None = None
    url: Annotated[str, StringConstraints(max_length=2048)] | None = None

    @model_validator(mode="after")
    def _is_an_image(self) -> Self:
        if (self.data is None) == (self.url is None):
            raise PydanticCustomError("image", "an image has either data or url")
        if self.url is not None:
            _check_image_url(self.url)
            return self
        assert self.data is not None
        if len(self.data) > MAX_IMAGE_CHARS:
            raise PydanticCustomError(TOO_LARGE, "image data of over {limit} characters", {"limit": MAX_IMAGE_CHARS})
        if self.media_type is None:
            raise PydanticCustomError("image", "image data needs its media_type")
        try:
            raw = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError):
            raise PydanticCustomError("image", "image data is not base64") from None
        webp = self.media_type != "image/webp" or raw[8:12] == b"WEBP"
        if not raw.startswith(_MAGIC[self.media_type]) or not webp:
            raise PydanticCustomError("image", "the data is not a {media_type}", {"media_type": self.media_type})
        return self


def _check_image_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or any(c.isspace() or not c.isprintable() for c in url):
        raise PydanticCustomError("image", "an image url starts with http:// or https://")


class ToolCallPart(Model):
    """The model's call of a tool; `arguments` is a JSON object as text, as the model wrote it."""

    type: Literal["tool_call"]
    id: Name
    name: Token
    arguments: LongText = "{}"
    signature: LongText | None = None


class ToolResultPart(Model):
    type: Literal["tool_result"]
    tool_call_id: Name
    content: LongText
    is_error: bool = False


Part = Annotated[TextPart | ImagePart | ToolCallPart | ToolResultPart, Field(discriminator="type")]
