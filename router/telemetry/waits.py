"""The time of a request by where it went: its turn in the queue, its model's wake, its prompt, its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Spent", "Wait", "Waited"]


class Waited(NamedTuple):
    """The time of a request before a worker had it, in seconds.

    Attributes:
        queue_s: while its model was there; with the making of its tokens.
        wake_s: while its model was away, or on its way.
    """

    queue_s: float = 0.0
    wake_s: float = 0.0


class Spent(NamedTuple):
    """The whole time of a request, in seconds.

    Attributes:
        queue_s, wake_s: as in ``Waited``.
        prefill_s: from then to its first token, of several choices to that of the slowest, or to its end if one got
            none; None if no worker ever had it.
        decode_s: what was left; None if there was no such token.
    """

    queue_s: float
    wake_s: float
    prefill_s: float | None = None
    decode_s: float | None = None


class Wait:
    """The wait of one request for a worker, from now on.

    Args:
        model: name of the one that it is for.
        away_s: seconds for which a model has been away in all, by its name; grows while it is away.
        clock: in seconds.
    """

    def __init__(self, model: str, away_s: Callable[[str], float], clock: Callable[[], float]) -> None:
        self._model = model
        self._away_s = away_s
        self._clock = clock
        self._began_s = clock()
        self._away_before_s = away_s(model)

    def so_far(self) -> Waited:
        """Returns what it came to by now."""
        in_all_s = self._clock() - self._began_s
        # A model that was removed meanwhile, and one made anew under its name, count from 0.
        away_s = min(max(0.0, self._away_s(self._model) - self._away_before_s), in_all_s)
        return Waited(in_all_s - away_s, away_s)
