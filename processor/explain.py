"""A routing decision as it is shown to who asks for it: `llm.route` and `sidecar route`. Pure."""

from __future__ import annotations

from typing import Any

from processor.complexity import complexity
from processor.messages import Request
from processor.router import Route
from processor.traits import question


def explanation(request: Request, route: Route) -> dict[str, Any]:
    """A JSON object: the rule that counted, what the question looks like, every candidate and every refusal."""
    looks = complexity(question(request))
    return {
        "rule": route.rule,
        "model_class": route.model_class,
        "input_tokens": route.traits.input_tokens,
        "complexity": {"score": round(looks.score, 3), "why": list(looks.why)},
        "candidates": [
            {
                "model": candidate.name,
                "id": candidate.model.id,
                "provider": candidate.model.provider,
                "score": candidate.score,
                "cost_usd": float(candidate.cost_usd),
                "reason": candidate.reason,
                "warnings": list(candidate.warnings),
            }
            for candidate in route.candidates
        ],
        "refusals": [
            {"model": refusal.model, "provider": refusal.provider, "reason": refusal.reason}
            for refusal in route.refusals
        ],
    }
