"""The bridge's API keys: who holds one and what it allows, from a TOML file or a list of plain keys. Pure."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from processor.messages import MAX_ONLY
from processor.parts import Name, Token
from processor.subjects import Priority

PREFIX: Final = "sk-sidecar-"
MAX_KEYS: Final = 10_000
MAX_RPM: Final = 1_000_000
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
GUESSABLE_CHARS: Final = 20
"""A plain key of fewer can be guessed, in time."""


class KeysError(Exception):
    """The keys cannot be used. The message names what is wrong, and never a key."""


class Key(BaseModel):
    """What one key allows. Where `tenant`, `models`, `priorities` or `rpm` is unset, it is not restricted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the key: the key itself is kept nowhere."""
    tenant: Token | None = None
    """Whose requests these are; unset: whoever the request names."""
    models: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_ONLY)] | None = None
    """By any of their names."""
    priorities: Annotated[tuple[Priority, ...], Field(min_length=1)] | None = None
    rpm: Annotated[int, Field(strict=True, ge=1, le=MAX_RPM)] | None = None
    """Requests a minute, over all bridges."""
    operator: Annotated[bool, Field(strict=True)] = False
    """Whether it may see what concerns all tenants."""


@dataclass(frozen=True)
class Keys:
    """All keys, by name."""

    by_name: Mapping[str, Key] = field(default_factory=dict)

    def holder(self, presented: bytes) -> str | None:
        """The name of the key that is `presented`; None for an unknown one.

        It is compared with every hash there is, each in constant time, so that how long it takes tells nothing.
        """
        digest = hashlib.sha256(presented).hexdigest()
        found: str | None = None
        for name, key in self.by_name.items():
            if hmac.compare_digest(digest, key.sha256):
                found = name
        return found


def new_key() -> str:
    """A key of 32 random bytes."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """What is kept of a key: its SHA-256, in hexadecimal digits. Keys are random, so that no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def plain_keys(listed: str) -> Keys:
    """The keys of a comma-separated list: each may do everything.

    Raises:
        KeysError: there is none, or one stands there twice.
    """
    keys = [key.strip() for key in listed.split(",") if key.strip()]
    if not keys:
        raise KeysError("it holds no key")
    return _checked({f"key-{number}": Key(sha256=hashed(key), operator=True) for number, key in enumerate(keys, 1)})


def guessable(listed: str) -> bool:
    """Whether a list holds a key that is so short that it can be guessed."""
    return any(0 < len(key.strip()) < GUESSABLE_CHARS for key in listed.split(","))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: Annotated[dict[Token, Key], Field(max_length=MAX_KEYS)] = Field(default_factory=dict)


_FILE: Final = TypeAdapter(_File)


def parse_keys(text: str) -> Keys:
    """The keys of a file's text.

    Raises:
        KeysError: it is no TOML, a field is unknown or wrong (which one, of which key), or two keys are the same.
    """
    try:
        return _checked(_FILE.validate_python(tomllib.loads(text)).keys)
    except tomllib.TOMLDecodeError as error:
        raise KeysError(f"it is no TOML: {error}") from None
    except ValidationError as error:
        raise KeysError("; ".join(_complaints(error))) from None


def load_keys(path: Path) -> Keys:
    """The keys of the file at `path`.

    Raises:
        KeysError: it cannot be read, or what `parse_keys` raises.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(f"it cannot be read ({error.strerror})") from None
    if len(text) > MAX_FILE_BYTES:
        raise KeysError(f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        return parse_keys(text.decode())
    except UnicodeDecodeError:
        raise KeysError("it is no UTF-8") from None


def _checked(keys: Mapping[str, Key]) -> Keys:
    seen: dict[str, str] = {}
    for name, key in keys.items():
        if (other := seen.setdefault(key.sha256, name)) != name:
            raise KeysError(f"{other} and {name} are the same key")
    return Keys(dict(keys))


def _complaints(error: ValidationError) -> Iterable[str]:
    """One for each wrong field, of the first ten. What stands there is not repeated: it may be a key."""
    for detail in error.errors(include_url=False, include_input=False, include_context=False)[:10]:
        yield f"{_place(detail['loc'])}: {_WORDS.get(detail['type'], detail['msg'])}"


def _place(steps: tuple[Any, ...]) -> str:
    """A key's name is cut: whoever puts the key itself there does not want to read it in a log."""
    return ".".join(str(step) for step in steps if step != "[key]")[:80] or "the file"


_WORDS: Final = {
    "extra_forbidden": "there is no such field",
    "missing": "it is missing",
    "tuple_type": "a list, in brackets",
}
