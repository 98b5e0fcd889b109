"""Reasons for which a request waits: what its model, its worker and the order of service say."""

from __future__ import annotations

import enum

from memory_manager.policy.residency import Residency
from memory_manager.policy.worker_load import Shortage

__all__ = ["WaitReason", "wait_reason"]


class WaitReason(enum.Enum):
    """The first thing that stands between a request and a worker."""

    ASLEEP = "asleep"  # its model is warm, cold or failed
    WAKING = "waking"  # its model is on its way from host memory
    LOADING = "loading"  # its model is on its way from storage
    LEAVING = "leaving"  # its model is on its way off the device
    SLOTS = "slots"  # its worker runs as many sequences of its model as it can
    LATE = "late"  # it can no longer begin in time, and others can
    BEHIND = "behind"  # others go first
    PROMPT_TOKENS = "prompt_tokens"  # its worker has prompts to compute for a step and more
    DECODE_PACE = "decode_pace"  # a round of decodes with it would take too long for those that are paced
    KV = "kv"  # the KV that it needs is promised to others
    NEXT = "next"  # nothing: it is given to its worker now


_AWAY = {
    Residency.WAKING: WaitReason.WAKING,
    Residency.LOADING: WaitReason.LOADING,
    Residency.DRAINING: WaitReason.LEAVING,
    Residency.RESIDENT: WaitReason.LEAVING,
}

_SHORT = {
    Shortage.PROMPT_TOKENS: WaitReason.PROMPT_TOKENS,
    Shortage.DECODE_PACE: WaitReason.DECODE_PACE,
    Shortage.KV: WaitReason.KV,
}


def wait_reason(
    residency: Residency,
    *,
    takes_requests: bool,
    has_slot: bool,
    is_first: bool,
    is_late: bool,
    shortage: Shortage | None,
) -> WaitReason:
    """The reason for which a request waits.

    Args:
        residency: of its model's best replica.
        takes_requests: whether that takes requests.
        has_slot: whether it has room for one more sequence.
        is_first: whether nobody goes before the request, of those that could have the same worker.
        is_late: whether it can no longer begin in time.
        shortage: what the worker lacks to begin it; looked at of the first alone.
    """
    if not takes_requests:
        return _AWAY.get(residency, WaitReason.ASLEEP)
    if not has_slot:
        return WaitReason.SLOTS
    if not is_first:
        return WaitReason.LATE if is_late else WaitReason.BEHIND
    return WaitReason.NEXT if shortage is None else _SHORT[shortage]
