"""Which model of a worker steps next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Turn", "order_of_turns"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A replica that has work.

    Attributes:
        deadline_s: the earliest of its sequences that have no first token yet; ``inf`` if there is none.
        last_step: number of the worker's step that it last took; 0 if it took none.
        num_turns_waited: steps that others took since it last had a turn and had work.
    """

    replica_id: str
    deadline_s: float
    last_step: int
    num_turns_waited: int


def order_of_turns(turns: Sequence[Turn], max_turns_waited: int) -> list[str]:
    """Replicas in the order in which they should be tried; the first that can run takes the step.

    The earliest deadline goes first, then the one that stepped least recently. Whoever has waited for
    ``max_turns_waited`` turns goes before all deadlines, longest wait first, so that of N replicas none
    waits for more than ``max_turns_waited + N - 1``.
    """

    def key(turn: Turn) -> tuple[int, float, int, str]:
        if turn.num_turns_waited >= max_turns_waited:
            return (-turn.num_turns_waited, 0.0, turn.last_step, turn.replica_id)
        return (0, turn.deadline_s, turn.last_step, turn.replica_id)

    return [turn.replica_id for turn in sorted(turns, key=key)]
