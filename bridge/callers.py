"""Who asks over HTTP, and what that caller may do."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from processor.subjects import Priority


@dataclass(frozen=True, slots=True)
class Caller:
    """What a key stands for. None means: any."""

    name: str
    tenant: str | None = None
    """The only tenant it asks for."""
    models: frozenset[str] | None = None
    priorities: frozenset[Priority] | None = None
    operator: bool = False
    """Whether it sees what other tenants do."""

    def may_see(self, tenant: str | None) -> bool:
        """Whether a request of `tenant` is its business; None: nobody knows whose it is."""
        return self.operator or self.tenant is None or self.tenant == tenant


ANYBODY = Caller("anybody", operator=True)
"""Where no keys are set, who reaches the bridge runs on its machine."""

NOBODY = Caller("nobody", tenant="", models=frozenset(), priorities=frozenset())
"""Where keys are set and none was shown yet: who reads what anybody may, or opens a WebSocket."""


def caller(connection: HTTPConnection) -> Caller:
    """Who has sent this, as the check at the door has found; what did not come through the door is nobody's."""
    found = connection.scope["caller"]
    assert isinstance(found, Caller)
    return found
