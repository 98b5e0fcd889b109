"""The roll of the workers: what stands between the policy of ``router.dispatch.failover`` and the running requests.

The policy decides; this knows who is present where, tells requests of a death once, and lets those wait whose
turn has not come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Protocol

from router.dispatch.failover import SuspectPolicy

__all__ = ["Attendance", "Attendee"]


class Attendee(Hashable, Protocol):
    """A request, as far as a worker's death concerns it."""

    def num_further_tokens(self) -> int:
        """Tokens got since it was last submitted."""
        ...

    def interrupt(self, *, poisonous: bool) -> None:
        """The worker under it died; if ``poisonous``, it is not to be tried again."""
        ...


class Attendance:
    """Which requests are on which worker, and whose turn it is to be tried again."""

    def __init__(self, policy: SuspectPolicy[Attendee]) -> None:
        self._policy = policy
        self._present: dict[Hashable, set[Attendee]] = {}
        self._waiting: dict[Attendee, asyncio.Future[None]] = {}

    async def turn(self, member: Attendee) -> None:
        """Returns at once for whoever is free to run, and else when its turn begins."""
        if self._policy.ask_turn(member):
            return
        waiting = self._waiting[member] = asyncio.get_running_loop().create_future()
        self._pass_turn()
        try:
            await waiting
        finally:
            del self._waiting[member]

    def enter(self, member: Attendee, runner: Hashable) -> None:
        self._present.setdefault(runner, set()).add(member)

    def leave(self, member: Attendee, runner: Hashable) -> None:
        """Its attempt is over, and with it its turn."""
        present = self._present.get(runner)
        if present is not None:
            present.discard(member)
            if not present:
                del self._present[runner]
        self._policy.give_back(member)
        self._pass_turn()

    def forget(self, member: Attendee) -> None:
        self._policy.forget(member)
        self._pass_turn()

    def progressed(self, member: Attendee) -> None:
        if self._policy.on_turn is member:
            self._policy.progressed(member, member.num_further_tokens())
            self._pass_turn()

    def worker_died(self, runner: Hashable) -> None:
        """Called for the first sequence that a dead worker loses; the others find it done."""
        present = self._present.pop(runner, None)
        if present is None:
            return
        failing = self._policy.died(present)
        for member in present:
            member.interrupt(poisonous=member in failing)
        self._pass_turn()

    def _pass_turn(self) -> None:
        member = self._policy.take_turn()
        waiting = self._waiting.get(member) if member is not None else None
        if waiting is not None and not waiting.done():  # else it is being cancelled and will give it back
            waiting.set_result(None)
