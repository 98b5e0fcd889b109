"""How long a deployment was away from its devices."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Absence"]


@dataclass(slots=True)
class Absence:
    """The time for which no replica of a deployment took requests.

    Attributes:
        since_s: when the present absence began; None while it is there.
        past_s: seconds of those that have ended.
    """

    since_s: float | None
    past_s: float = 0.0

    def note(self, is_there: bool, now_s: float) -> None:
        """Notes whether it is there from now on."""
        if is_there and self.since_s is not None:
            self.past_s += now_s - self.since_s
            self.since_s = None
        elif not is_there and self.since_s is None:
            self.since_s = now_s

    def seconds(self, now_s: float) -> float:
        """Seconds of all of them, up to now."""
        return self.past_s + (0.0 if self.since_s is None else now_s - self.since_s)
