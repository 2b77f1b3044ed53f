"""What of a client's request was not used: field names alone, as one header of bounded length."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Final

HEADER: Final = "X-Sidecar-Ignored"
MAX_NAMES: Final = 32
MAX_NAME_CHARS: Final = 64

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]")


class Ignored:
    """Names of fields, each once, in the order in which they were met.

    Names come from outside: what is no letter, digit, `_`, `.` or `-` shows as `?`, and whatever is too long is cut.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._more = False

    def add(self, *steps: str) -> None:
        """Note the field that `steps` lead to: `add("tools", "strict")` is `tools.strict`."""
        name = _UNFIT.sub("?", ".".join(steps)[:MAX_NAME_CHARS]) or "?"
        if name in self._names:
            return
        if len(self._names) < MAX_NAMES:
            self._names[name] = None
        else:
            self._more = True

    def add_all_but(self, used: Container[str], fields: Mapping[str, object], *steps: str) -> None:
        """Note every field of an object that is neither `used` nor null; `steps` lead to the object."""
        for name, value in fields.items():
            if value is not None and name not in used:
                self.add(*steps, name)

    def __iter__(self) -> Iterator[str]:
        yield from self._names
        if self._more:
            yield "..."

    def headers(self) -> dict[str, str]:
        """The header, or none where nothing was ignored."""
        return {HEADER: ", ".join(self)} if self._names else {}
