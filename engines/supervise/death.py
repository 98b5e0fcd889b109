"""How a worker's life ends: the watch over steps that hang, and what is known of a death."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass

from engines.link.status_page import StatusPage
from engines.link.wire import ROUTER_ID_MASK
from engines.link.worker_memory import WorkerMemory

__all__ = ["WorkerDeath", "death_of", "wait_stalled"]


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """How a life of a worker ended, as far as its sequences are concerned.

    Attributes:
        in_step: ids of the sequences of the step in which it died; empty if it died outside a step.
        killed: it was ended by a SIGKILL that was not ours: by the system's out-of-memory killer, or by a person.
    """

    in_step: frozenset[int] = frozenset()
    killed: bool = False


def death_of(memory: WorkerMemory, status: int, *, by_us: bool) -> WorkerDeath:
    """Returns how the worker died that wrote ``memory`` and has ended.

    Args:
        status: exit status of the process; the negative number of a signal that ended it.
        by_us: whether the supervisor killed it because its step hung.
    """
    in_step = frozenset(number & ROUTER_ID_MASK for number in memory.recorder.sequence_ids())
    return WorkerDeath(in_step, killed=status == -signal.SIGKILL and not by_us)


async def wait_stalled(page: StatusPage, max_stall_s: float, clock: Callable[[], float]) -> None:
    """Returns when one step has run for longer than ``max_stall_s``; ``clock`` is ``time.monotonic``."""
    while True:
        progress = page.progress()
        ran_s = clock() - progress.began_s if progress.began_s else 0.0
        if ran_s < max_stall_s:
            await asyncio.sleep(max_stall_s - ran_s)
            continue
        # If the whole machine was stopped for a while, so was the worker: its step gets time to end now.
        await asyncio.sleep(max_stall_s / 10)
        if page.progress() == progress:
            return
