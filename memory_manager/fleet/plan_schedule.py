"""When the next plan is made: soon after an event, once for all that come together, or when time asks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

__all__ = ["PlanSchedule"]

_RETRY_S = 1.0


class PlanSchedule:
    """Calls ``make_plan`` on the running event loop."""

    def __init__(self, make_plan: Callable[[], None]) -> None:
        self._make_plan = make_plan
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def soon(self) -> None:
        """One plan after what runs now has returned, however often this is called meanwhile."""
        if self._soon is None and not self._stopped:
            self._soon = asyncio.get_running_loop().call_soon(self._run)

    def after(self, delay_s: float) -> None:
        """A plan in ``delay_s``, in place of the one that was to come by time before; ``inf`` is never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s < math.inf and not self._stopped:
            # A little late rather than a little early, or the plan would be due again at once.
            self._timer = asyncio.get_running_loop().call_later(delay_s + 0.001, self.soon)

    def stop(self) -> None:
        """No further plans."""
        self._stopped = True
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()

    def _run(self) -> None:
        self._soon = None
        # For a plan that cannot be made; one that is made says itself when the next is due.
        self.after(_RETRY_S)
        self._make_plan()
