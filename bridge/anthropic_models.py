"""The models that can be called, in the form of Anthropic's Models API. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

VERSION_HEADER: Final = "anthropic-version"
"""Which every client of Anthropic's API sends: it tells whose models are asked for at a path of both vendors."""
Row = Mapping[str, Any]
"""A model as `llm.models` tells of it."""
_UNKNOWN = "1970-01-01T00:00:00Z"
"""Anthropic's own word for a date of release that is not known."""


def models(rows: Sequence[Row]) -> dict[str, Any]:
    """One page with all that can be called: `auto`, then each by its alias and by its vendor's id.

    A retired one's names mean its successor.
    """
    data = list(_listed(rows))
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def model(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    """The model of that name; None where it cannot be called."""
    return next((found for found in _listed(rows) if found["id"] == name), None)


def _listed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    by_alias = {row["model"]: row for row in rows}
    seen: set[str] = set()
    for row in rows:
        if not row["available"]:
            continue
        if not seen:
            seen.add("auto")
            yield _info("auto", "auto: the sidecar chooses")
        answering = by_alias.get(row["answered_by"], row)
        for name in (row["model"], row["id"]):
            if name not in seen:
                seen.add(name)
                yield _info(name, f"{answering['model']} ({answering['provider']})", answering)


def _info(name: str, shown: str, row: Row | None = None) -> dict[str, Any]:
    retires = row["retires"] if row is not None else None
    return {
        "type": "model",
        "id": name,
        "display_name": shown,
        "created_at": _UNKNOWN,
        "lifecycle": "active" if retires is None else "deprecated",
        "retires_at": None if retires is None else f"{retires}T00:00:00Z",
        "max_input_tokens": row["context"] if row is not None else None,
        "max_tokens": row["max_output"] if row is not None else None,
    }
