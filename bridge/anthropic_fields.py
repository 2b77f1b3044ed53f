"""A body of Anthropic's Messages API, field by field: each is taken by name, the rest is ignored and named. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, overload

import orjson

from bridge.ignored import Ignored
from processor.errors import ErrorType, RequestError

REQUIRED = "Field required"
"""In Anthropic's words."""
TOO_LONG = "prompt is too long"
"""With status 400, Anthropic's words for a talk that no window holds, at which coding agents shorten it."""

T = TypeVar("T")

_KINDS: dict[type, str] = {str: "a string", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}


def invalid(where: str, what: str) -> RequestError:
    """The error that names a field."""
    return RequestError(ErrorType.INVALID_REQUEST, f"{where}: {what}"[:500])


class Fields:
    """One JSON object. A field that is null counts as one that is not there."""

    def __init__(self, value: object, where: str, ignored: Ignored) -> None:
        """Raises RequestError unless `value` is an object."""
        if not isinstance(value, dict):
            raise invalid(where or "body", "it has to be an object")
        self.where = where
        self._left = {name: field for name, field in value.items() if field is not None}
        self._ignored = ignored

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str) -> Any:
        """A field of any type, or None."""
        return self._left.pop(name, None)

    @overload
    def of(self, name: str, kind: type[T]) -> T | None: ...

    @overload
    def of(self, name: str, kind: type[T], *, required: bool) -> T: ...

    def of(self, name: str, kind: type[T], *, required: bool = False) -> T | None:
        """A field of that type.

        Raises:
            RequestError: `invalid_request`, for another type, or for a required field that is not there.
        """
        value = self.take(name)
        if value is None:
            if required:
                raise invalid(self.at(name), REQUIRED)
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid(self.at(name), f"it has to be {_KINDS[kind]}")
        return value

    def objects(self, name: str) -> Iterator[Fields]:
        """A list of objects, one after the other; none where the field is not there."""
        for index, value in enumerate(self.of(name, list) or ()):
            yield Fields(value, f"{self.at(name)}.{index}", self._ignored)

    def starting(self, prefix: str) -> dict[str, object]:
        """All fields whose names start so."""
        return {name: self._left.pop(name) for name in list(self._left) if name.startswith(prefix)}

    def inner(self, name: str) -> Fields | None:
        """An object within."""
        value = self.of(name, dict)
        return None if value is None else Fields(value, self.at(name), self._ignored)

    def ignore(self, name: str) -> None:
        """Note that something in here is not obeyed, by its path without the numbers in it."""
        self._ignored.add(*(step for step in self.where.split(".") if step and not step.isdecimal()), name)

    def ignore_rest(self) -> None:
        """Note every field that was not taken."""
        for name in self._left:
            self.ignore(name)


def dumps(value: object, where: str) -> bytes:
    """JSON of what came as JSON. Raises RequestError where it is nested too deeply."""
    try:
        return orjson.dumps(value)
    except TypeError:
        raise invalid(where, "it is nested too deeply") from None
