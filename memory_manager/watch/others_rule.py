"""How much of a device's budget is ours to use at this moment, given the memory of other processes.

A pure rule, which is told the time. If the memory of other processes grows, ours shrinks at once. If theirs
goes again, ours grows back only after it has stayed away for a while, and into no more than was free all that
time. Readings that move a little change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.watch.devices import DeviceMemory
from mooring.declared import Bounds, Setting, check_bounds
from mooring.units import MIB

__all__ = ["OthersConfig", "OthersRule", "room_bytes"]


@dataclass(frozen=True, slots=True)
class OthersConfig:
    """How a device is shared with processes that are not ours. The fields that are no settings are:

    Attributes:
        step_bytes: smaller changes are not followed; less than the margin.
        max_stalled_share: nothing grows while processes wait for memory for more than this share of their
            time.
        num_sharing: number of our devices that are the same memory (the CPU as several devices); they divide
            between them what is free.
    """

    watch: Annotated[bool, Setting("Whether devices are watched at all.")] = True
    period_s: Annotated[float, Bounds(gt=0), Setting("Time between two looks at a device.")] = 0.5
    margin_bytes: Annotated[
        int,
        Bounds(ge=0),
        Setting(
            "Memory of a device, and of the host, that is left free for others to grow into.", name="margin"
        ),
    ] = 256 * MIB
    step_bytes: int = 32 * MIB
    grow_after_s: Annotated[
        float,
        Bounds(ge=0),
        Setting("Others' memory must have been gone for so long before ours grows back."),
    ] = 5.0
    max_stalled_share: float = 0.05
    num_sharing: int = 1

    def __post_init__(self) -> None:
        check_bounds(self)


def room_bytes(memory: DeviceMemory, held_bytes: int, num_sharing: int = 1) -> int:
    """Bytes of the device that are ours or could be.

    Args:
        held_bytes: device memory that our workers hold, by their own account. If the device tells our
            processes' memory from that of others, its figure is used instead.
        num_sharing: see ``OthersConfig``.
    """
    if memory.kind == "cuda" and memory.others_bytes is not None:
        return max(0, memory.total_bytes - memory.others_bytes)
    return held_bytes + memory.free_bytes // num_sharing


class OthersRule:
    """The budget that follows from the readings of one device.

    Args:
        budget_bytes: the configured budget, which is the most there ever is.
        floor_bytes: the part that we cannot give up; the budget never falls below it.

    Attributes:
        effective_bytes: the budget now; ``floor_bytes <= effective_bytes <= budget_bytes``.
    """

    def __init__(self, budget_bytes: int, floor_bytes: int, config: OthersConfig) -> None:
        self._budget_bytes = budget_bytes
        self._floor_bytes = min(floor_bytes, budget_bytes)
        self._config = config
        self._least_bytes = 0  # the smallest target since ``_since_s``
        self._since_s: float | None = None  # since when the target has been above the budget
        self.effective_bytes = budget_bytes

    def observe(self, room: int | None, stalled_share: float | None, now_s: float) -> int:
        """Takes one reading; returns the budget from now on.

        Args:
            room: the figure of ``room_bytes``; None if the device could not be read: then the configured
                budget is in force again.
            stalled_share: share of the last seconds in which processes waited for memory; None if unknown.
            now_s: the time, never earlier than in the call before.
        """
        target_bytes = self._target_bytes(room)
        step_bytes = min(self._config.step_bytes, self._config.margin_bytes)
        if target_bytes < self.effective_bytes:
            self._since_s = None
            if target_bytes <= self.effective_bytes - step_bytes or target_bytes == self._floor_bytes:
                self.effective_bytes = target_bytes
        elif not self._may_grow_to(target_bytes, step_bytes) or self._is_stalled(stalled_share):
            self._since_s = None
        else:
            self._wait_to_grow(target_bytes, now_s)
        return self.effective_bytes

    def _target_bytes(self, room: int | None) -> int:
        if room is None:
            return self._budget_bytes
        pages = (room - self._config.margin_bytes) // PAGE_BYTES
        return max(self._floor_bytes, min(self._budget_bytes, pages * PAGE_BYTES))

    def _may_grow_to(self, target_bytes: int, step_bytes: int) -> bool:
        growth_bytes = target_bytes - self.effective_bytes
        return growth_bytes > 0 and (growth_bytes >= step_bytes or target_bytes == self._budget_bytes)

    def _is_stalled(self, stalled_share: float | None) -> bool:
        return stalled_share is not None and stalled_share > self._config.max_stalled_share

    def _wait_to_grow(self, target_bytes: int, now_s: float) -> None:
        if self._since_s is None:
            self._since_s, self._least_bytes = now_s, target_bytes
        self._least_bytes = min(self._least_bytes, target_bytes)
        if now_s - self._since_s >= self._config.grow_after_s:
            self.effective_bytes, self._since_s = self._least_bytes, None
