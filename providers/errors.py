"""The one family of errors a provider raises, split by whose fault it is and by what can help.

ProviderError
├── CallerFault            the request is wrong; the same request fails everywhere
│   ├── InvalidPrompt      400, 422: the vendor refused the request's shape
│   ├── PromptTooLarge     413 or a context overflow: a model with a larger window may take it
│   └── Unsupported        this vendor cannot do it; refused by name before any call
├── AccountFault           our key, credit or model; another provider may answer
│   ├── BadCredentials     401, 403
│   ├── OutOfCredit        402, spend caps: waiting does not help
│   └── ModelGone          404
├── Throttled              come back later, or go elsewhere now
│   ├── RateLimited        429
│   └── Overloaded         529, 503, Groq's 498: the vendor's trouble, not our quota
└── VendorFault            the vendor or the way to it broke
    ├── VendorError        5xx, an error event inside a 200 stream
    ├── ConnectionFailed   no connection (refused, DNS, TLS, not in time), or one that broke before any answer
    ├── TimedOut           connected, but no byte within the time allowed
    ├── StreamCut          the stream ended without its terminal event
    ├── BadResponse        what came is not the vendor's format
    └── ModelNoise         the model produced an unusable call (Groq's tool_use_failed)

Crosswise to the tree, some errors say that the call was certainly never sent (`unsent`), so that it cost nothing:
every Unsupported, a ConnectionFailed without a connection, and whatever kept a provider's client from being opened.
"""

from __future__ import annotations

from enum import StrEnum

from providers.base import Quota


class Remedy(StrEnum):
    """What another try needs to have a chance."""

    NONE = "none"
    SAME = "same"
    OTHER = "other"
    WAIT = "wait"


class ProviderError(Exception):
    """A call to a vendor that gave no complete answer.

    `message` is fit for a client: no key, no trace. `retry_after_s` is the vendor's own word in seconds, where it
    gave one; `vendor_type` the vendor's name for the error; `quotas` what its headers said of its limits. `unsent` is
    True only where the vendor certainly never saw the call: it counts against no limit, and costs nothing.
    """

    remedy: Remedy = Remedy.OTHER
    unsent: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        vendor_type: str | None = None,
        retry_after_s: float | None = None,
        vendor_request_id: str | None = None,
        quotas: tuple[Quota, ...] = (),
        unsent: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.vendor_type = vendor_type
        self.retry_after_s = retry_after_s
        self.vendor_request_id = vendor_request_id
        self.quotas = quotas
        if unsent is not None:
            self.unsent = unsent

    @property
    def kind(self) -> str:
        """The class name in snake case, as audit events and metrics show it."""
        name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class CallerFault(ProviderError):
    remedy = Remedy.NONE


class InvalidPrompt(CallerFault):
    pass


class PromptTooLarge(CallerFault):
    remedy = Remedy.OTHER


class Unsupported(CallerFault):
    remedy = Remedy.OTHER
    unsent = True


class AccountFault(ProviderError):
    remedy = Remedy.OTHER


class BadCredentials(AccountFault):
    pass


class OutOfCredit(AccountFault):
    pass


class ModelGone(AccountFault):
    pass


class Throttled(ProviderError):
    remedy = Remedy.WAIT


class RateLimited(Throttled):
    pass


class Overloaded(Throttled):
    pass


class VendorFault(ProviderError):
    remedy = Remedy.SAME


class VendorError(VendorFault):
    pass


class ConnectionFailed(VendorFault):
    pass


class TimedOut(VendorFault):
    pass


class StreamCut(VendorFault):
    pass


class BadResponse(VendorFault):
    pass


class ModelNoise(VendorFault):
    pass
