"""The models that can be called, as OpenAI lists them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]
"""A model as `llm.models` tells of it."""

_AUTO: Final[Row] = {"model": "auto", "provider": "sidecar"}
_MORE: Final = {"context_window": "context", "max_completion_tokens": "max_output", "shutdown_date": "retires"}


def models(rows: Sequence[Row]) -> dict[str, Any]:
    """The list of `auto` and of every alias that is answered today."""
    return {"object": "list", "data": [_model(name, row) for name, row in _called(rows, "model")]}


def model(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    """The model of that alias or vendor's id, under the name that was asked for; None where none can be called."""
    known = [*_called(rows, "model"), *_called(rows, "id")]
    return next((_model(name, row) for called, row in known if called == name), None)


def _called(rows: Sequence[Row], field: str) -> Iterator[tuple[str, Row]]:
    """What can be called by the name in `field`, with the row of the model that answers: a retired one's successor."""
    by_alias = {row["model"]: row for row in rows}
    found = [(row[field], by_alias.get(row["answered_by"], row)) for row in rows if row["available"]]
    if found:
        yield "auto", _AUTO
    yield from found


def _model(name: str, row: Row) -> dict[str, Any]:
    found = {"id": name, "object": "model", "created": 0, "owned_by": row["provider"]}
    return found | {theirs: row[ours] for theirs, ours in _MORE.items() if row.get(ours) is not None}
