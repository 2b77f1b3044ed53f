"""Which lane goes next: strictly the most urgent, but every lower lane is sure of its share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from processor.subjects import Priority


@dataclass(frozen=True, slots=True)
class Schedule:
    """A lane that waits beside others gains its share of each pick; with a whole pick gathered it goes first.

    So a lane that waits during n picks gets at least floor(n * share) - 3 of them, whatever the others do (the three
    may be due as well), and one that waits alone or not at all gathers nothing: traffic on the low lane only never
    delays an alert.
    """

    shares: Mapping[Priority, float]
    """Of the picks, when all lanes wait."""
    gathered: Mapping[Priority, float] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Sequence[int]) -> Schedule:
        """Weights of the lanes, the most urgent first: (70, 15, 10, 5)."""
        return cls({p: weight / sum(weights) for p, weight in zip(Priority, weights, strict=True)})

    def pick(self, waiting: Collection[Priority], held_up: Collection[Priority] = ()) -> tuple[Priority, Schedule]:
        """The lane that goes next, and the schedule after it. Raises ValueError where none waits.

        Lanes that are `held_up` wait too, but cannot go now: they gain nothing, and keep what they have.
        """
        lanes = [p for p in Priority if p in waiting]
        if not lanes:
            raise ValueError("no lane waits")
        due = [p for p in lanes if self.gathered.get(p, 0.0) >= 1.0]
        chosen = max(due, key=self.gathered.__getitem__) if due else lanes[0]
        gains = self.shares if len(lanes) > 1 else {}
        gathered = {p: self.gathered.get(p, 0.0) + gains.get(p, 0.0) for p in lanes}
        gathered |= {p: self.gathered[p] for p in held_up if p not in lanes and p in self.gathered}
        gathered[chosen] = max(0.0, gathered[chosen] - 1.0)
        return chosen, Schedule(self.shares, gathered)


def slots_for(priority: Priority, total: int, kept: int) -> int:
    """How many of `total` slots a priority may fill, of which `kept` are only for critical; at least one."""
    return total if priority is Priority.CRITICAL else max(1, total - kept)
