"""Which request killed a worker: suspects are tried again in halves until the killer is alone.

1. **Blame.** A death in a step makes suspects of the requests in that step, and of nobody else. They are split into
   two groups. If some of them were on trial, those alone are blamed and split.
2. **Trial.** Groups are tried one after the other, beside all requests that nobody suspects. A suspect that gets
   ``clear_after_tokens`` further is cleared. Each time that it is suspected again it has to get twice as far, so that
   one which kills late is found too.
3. **Verdict.** A suspect that is the only request in a step that dies fails. If others were in the step that nobody
   suspected, they become suspects too, and it fails the next time.

So one killer among n requests costs log2(n) + 1 deaths, or one more beside others, and everybody else ends well. A
death outside a step blames nobody. Neither does a kill by the system, which says that memory is short and not whose
fault that is; a second one within ``killed_again_s`` counts as a death in the step.

Progress is what had reached the router: ``clear_after_tokens`` has to be more than a death can lose on the way, or a
suspect is cleared before it is past the place where it killed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["Suspects"]

Key = TypeVar("Key", bound=Hashable)


class Suspects(Generic[Key]):
    """Decides on blame and trials; pure, for one router and all of its workers.

    Args:
        clear_after_tokens: further tokens that clear a suspect the first time.
        killed_again_s: seconds within which a second kill by the system counts as a death in the step.
    """

    def __init__(self, clear_after_tokens: int, killed_again_s: float) -> None:
        self._clear_after_tokens = clear_after_tokens
        self._killed_again_s = killed_again_s
        self._killed_s = -math.inf  # when the system last killed a worker
        self._groups: list[set[Key]] = []  # of suspects, in the order of their trials
        self._waiting: set[Key] = set()
        self._trial: set[Key] = set()  # the group on trial
        self._running: set[Key] = set()  # suspects, all of that group
        self._num_cleared: dict[Key, int] = {}
        self._alone_before: set[Key] = set()  # once the only suspect in a step that died, beside others

    def __contains__(self, key: Key) -> bool:
        return any(key in group for group in self._groups)

    def wait(self, key: Key) -> None:
        """Notes that a suspect is ready to run and waits for its trial."""
        self._waiting.add(key)

    def is_tried(self, key: Key) -> bool:
        """Whether a suspect runs, on trial."""
        return key in self._running

    def begin_trials(self) -> frozenset[Key]:
        """Returns the suspects that may run from now on: all that wait in the group on trial, or in the next one if
        none of that group runs."""
        if not self._running:
            self._trial = next((group for group in self._groups if group & self._waiting), set())
            self._groups.sort(key=lambda group: group is self._trial)  # its next turn is after all others'
        beginning = frozenset(self._trial & self._waiting)
        self._running |= beginning
        self._waiting -= beginning
        return beginning

    def stop(self, key: Key) -> None:
        """Notes that a suspect neither runs nor waits any more. It stays a suspect."""
        self._waiting.discard(key)
        self._running.discard(key)

    def progressed(self, key: Key, num_tokens: int) -> None:
        """Notes that a request has got ``num_tokens`` since it was last submitted."""
        num_cleared = self._num_cleared.get(key, 0)
        if key in self._running and num_tokens >= self._clear_after_tokens << num_cleared:
            self._num_cleared[key] = num_cleared + 1
            self._clear(key)

    def forget(self, key: Key) -> None:
        """Drops a request that has finished, failed or been cancelled."""
        self._num_cleared.pop(key, None)
        self._clear(key)

    def died(self, in_step: Collection[Key], *, killed: bool, now_s: float) -> Key | None:
        """Blames requests for the death of a worker; returns the one that fails, if one does.

        Args:
            in_step: requests of the step in which it died; empty if it died outside a step.
            killed: the system killed it.
            now_s: time of the death.
        """
        if killed:
            since_s, self._killed_s = now_s - self._killed_s, now_s
            if since_s > self._killed_again_s:
                return None
        tried = [key for key in in_step if key in self._running]
        others = [key for key in in_step if key not in self._running]
        if len(tried) == 1 and (not others or tried[0] in self._alone_before):
            return tried[0]
        for key in tried:
            self._clear(key)
        self._blame(tried)
        if len(tried) < 2:
            self._alone_before.update(tried)
            self._blame(others)
        return None

    def _blame(self, keys: list[Key]) -> None:
        middle = len(keys) // 2
        self._groups += [set(half) for half in (keys[:middle], keys[middle:]) if half]

    def _clear(self, key: Key) -> None:
        self.stop(key)
        self._alone_before.discard(key)
        for group in self._groups:
            group.discard(key)
        self._groups = [group for group in self._groups if group]
