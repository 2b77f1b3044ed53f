"""A batch as `LLM_BATCHES` keeps it: which requests belong together. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from processor.parts import Token


class Batch(BaseModel):
    """The list of a batch, written before its first request is queued. Its requests are `<id>-1`, `<id>-2` …"""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    created_at: datetime
    count: Annotated[int, Field(ge=1)]
    tenants: tuple[Token, ...]
    """Whose requests these are."""
    custom_ids: tuple[str | None, ...] = ()
    """The client's own names of the requests, in order; empty where it gave none."""
    digest: str
    """Of all requests and their names: the same key with others is refused."""

    @property
    def request_ids(self) -> list[str]:
        return [f"{self.id}-{number}" for number in range(1, self.count + 1)]

    def custom_id(self, index: int) -> str | None:
        return self.custom_ids[index] if self.custom_ids else None


def batch_id(owner: str, key: str) -> str:
    """The id that belongs to an owner's idempotency key: nobody can name another's batch by choosing a key."""
    return f"batch-{hashlib.sha256(f'{owner} {key}'.encode()).hexdigest()[:32]}"


def digest(requests: Iterable[tuple[str | None, bytes]]) -> str:
    """What tells one batch from another: the client's names of the requests, and their bodies."""
    found = hashlib.sha256()
    for custom_id, body in requests:
        found.update(f"{len(body)} {custom_id}\n".encode())
        found.update(body)
    return found.hexdigest()
