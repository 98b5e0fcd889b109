"""Reasons for which a request waits: what its model, its worker and the order of service say."""

from __future__ import annotations

import enum

from memory_manager.policy.claim import Obstacle
from memory_manager.policy.residency import Residency

__all__ = ["WaitReason", "wait_reason"]


class WaitReason(enum.Enum):
    """The first thing that stands between a request and a worker."""

    ASLEEP = "asleep"  # its model is warm, cold or failed
    WAKING = "waking"  # its model is on its way from host memory
    LOADING = "loading"  # its model is on its way from storage
    LEAVING = "leaving"  # its model is on its way off the device
    SLOTS = Obstacle.SLOTS.value
    KV_CAP = Obstacle.KV_CAP.value
    SHARE = Obstacle.SHARE.value
    PROMPT_TOKENS = Obstacle.PROMPT_TOKENS.value
    DECODE_PACE = Obstacle.DECODE_PACE.value
    KV = Obstacle.KV.value
    LATE = "late"  # it can no longer begin in time, and others can
    BEHIND = "behind"  # others go first
    NEXT = "next"  # nothing: it is given to its worker now


_AWAY = {
    Residency.WAKING: WaitReason.WAKING,
    Residency.LOADING: WaitReason.LOADING,
    Residency.DRAINING: WaitReason.LEAVING,
    Residency.RESIDENT: WaitReason.LEAVING,
}


def wait_reason(
    residency: Residency,
    *,
    takes_requests: bool,
    is_first: bool,
    is_late: bool,
    obstacle: Obstacle | None,
) -> WaitReason:
    """The reason for which a request waits.

    Args:
        residency: of its model's best replica.
        takes_requests: whether that takes requests.
        is_first: whether nobody goes before the request, of those that could have the same worker.
        is_late: whether it can no longer begin in time.
        obstacle: what keeps the worker from beginning it, if it has the model.
    """
    if not takes_requests:
        return _AWAY.get(residency, WaitReason.ASLEEP)
    if obstacle is not None and (is_first or obstacle.is_own):
        return WaitReason(obstacle.value)
    if is_first:
        return WaitReason.NEXT
    return WaitReason.LATE if is_late else WaitReason.BEHIND
