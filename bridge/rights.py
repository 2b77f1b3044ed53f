"""What a caller's key makes of a request: its tenant and its models, or a refusal that says what it may ask for."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.callers import Caller
from processor.errors import ErrorType, RequestError
from processor.messages import Request
from processor.subjects import Priority


def permitted(request: Request, who: Caller, *, names_tenant: bool = False) -> Request:
    """The request as `who` may make it: of its tenant, and answered by its models alone.

    Whether a model that is asked for is one of them is left to the sidecars, which know all its names.

    Args:
        names_tenant: whether the request's tenant was named beside its body.

    Raises:
        RequestError: `forbidden`.
    """
    changes: dict[str, object] = {}
    if who.tenant is not None and who.tenant != request.tenant:
        if names_tenant or "tenant" in request.model_fields_set:
            raise _forbidden(f"tenant {request.tenant}: this key asks for {who.tenant} alone")
        changes["tenant"] = who.tenant
    if who.models is not None:
        if strangers := set(request.only) - who.models:
            raise _forbidden(f"only: {_listed(strangers)}: this key may use {_listed(who.models)}")
        if not request.only:
            changes["only"] = tuple(sorted(who.models))
    return request.model_copy(update=changes) if changes else request


def check_priority(priority: Priority, who: Caller) -> None:
    """Raises RequestError, `forbidden`, for one that the caller may not use."""
    if who.priorities is not None and priority not in who.priorities:
        allowed = ", ".join(one for one in Priority if one in who.priorities)
        raise _forbidden(f"priority {priority}: this key may ask with {allowed}")


def _forbidden(why: str) -> RequestError:
    return RequestError(ErrorType.FORBIDDEN, why)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
