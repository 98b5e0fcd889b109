"""Who is to blame when a worker dies, and how the survivors are tried again.

Any of the requests that were present may have killed it. Trying all of them again at once could kill the
next life in the same way, for ever, and with it every model of the worker. So:

1. **First blame.** All present are blamed, and each becomes a *suspect*. Suspects run again one at a time,
   on *probation*: the one whose turn it is runs among requests that were never at a death, or that are
   cleared. Once it has got ``clear_after_tokens`` further than where it died, or has ended, it is *cleared*
   and the next suspect has its turn. What is cleared keeps running.
2. **A death during probation** is blamed on the one on probation, alone, and that one fails: it was present
   twice. The others present go on as they were, unblamed.
3. **Second blame without a probation.** Among those present, some were at an earlier death. If that is only
   one, it fails. If there are several they are *convicts*: each runs one at a time as a suspect does, but to
   its end, with no clearing; whichever is on its turn at the next death fails alone, by rule 2. Those for
   whom it was the first death become suspects.

Suspects and convicts wait in one line, suspects first, because their turns are short. So with one poisonous
request among any number of innocents, the innocents all end well and the poisonous one fails at its second
or third death. Requests that were never present at a death run as if nothing had happened.

Presence and progress are the router's own view: what it had sent to that worker and had not seen end, and
the tokens that had reached it. ``clear_after_tokens`` has to be more than a worker's death can lose on the
way, or a suspect is cleared before it is past the place where it died, and the next one takes its blame.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Standing", "SuspectPolicy"]

Key = TypeVar("Key", bound=Hashable)


class Standing(enum.Enum):
    """What the policy holds against a request."""

    FREE = "free"  # never present at a death
    SUSPECT = "suspect"  # blamed once, and not yet past its probation
    CLEARED = "cleared"  # blamed once, and past it
    CONVICT = "convict"  # blamed twice together with others


@dataclass(slots=True)
class _Record:
    standing: Standing
    waiting_since: int | None = None  # place in the line; None: it is not ready for its turn


class SuspectPolicy(Generic[Key]):
    """Decides on blame and turns; pure, for one router and all of its workers.

    A request that may not run asks for its turn (``ask_turn``) when everything else it needs is there, so
    that no turn is spent waiting for a model; the turn ends when it is cleared, ends or gives it back. After
    every call, ``take_turn`` names the request whose turn begins, if one does.

    Args:
        clear_after_tokens: further tokens that end a suspect's probation.
    """

    def __init__(self, clear_after_tokens: int = 8) -> None:
        self._clear_after_tokens = clear_after_tokens
        self._records: dict[Key, _Record] = {}  # of those that were present at a death
        self._on_turn: Key | None = None
        self._num_asked = 0

    @property
    def on_turn(self) -> Key | None:
        """The one suspect or convict that runs now."""
        return self._on_turn

    def standing(self, key: Key) -> Standing:
        record = self._records.get(key)
        return Standing.FREE if record is None else record.standing

    def ask_turn(self, key: Key) -> bool:
        """True: it may run now. False: it waits in the line until ``take_turn`` names it."""
        record = self._records.get(key)
        if record is None or record.standing is Standing.CLEARED or key == self._on_turn:
            return True
        if record.waiting_since is None:
            self._num_asked += 1
            record.waiting_since = self._num_asked
        return False

    def take_turn(self) -> Key | None:
        """Gives the turn, if nobody has it, to the first in the line; returns whose turn began."""
        if self._on_turn is not None:
            return None
        line = [
            (record.standing is Standing.CONVICT, record.waiting_since, key)
            for key, record in self._records.items()
            if record.waiting_since is not None
        ]
        if not line:
            return None
        self._on_turn = min(line, key=lambda entry: entry[:2])[2]
        self._records[self._on_turn].waiting_since = None
        return self._on_turn

    def give_back(self, key: Key) -> None:
        """It does not run after all, for no fault of its own: it leaves the line, or its turn ends."""
        record = self._records.get(key)
        if record is not None:
            record.waiting_since = None
        if key == self._on_turn:
            self._on_turn = None

    def progressed(self, key: Key, num_tokens: int) -> None:
        """It has now got ``num_tokens`` further than where it died; clears a suspect on its turn."""
        if key != self._on_turn or num_tokens < self._clear_after_tokens:
            return
        record = self._records[key]
        if record.standing is Standing.SUSPECT:
            record.standing = Standing.CLEARED
            self._on_turn = None

    def forget(self, key: Key) -> None:
        """It ended: finished, failed or was cancelled."""
        self.give_back(key)
        self._records.pop(key, None)

    def died(self, present: Collection[Key]) -> frozenset[Key]:
        """A worker died with these present. Returns those that fail now; the others are to run again.

        Raises nothing and forgets nobody: the caller forgets those that it fails.
        """
        if self._on_turn is not None and self._on_turn in present:
            guilty = self._on_turn
            self._on_turn = None
            return frozenset((guilty,))
        again = [key for key in present if self.standing(key) is not Standing.FREE]
        for key in present:
            first = self.standing(key) is Standing.FREE
            self._records[key] = _Record(Standing.SUSPECT if first else Standing.CONVICT)
        return frozenset(again) if len(again) == 1 else frozenset()
