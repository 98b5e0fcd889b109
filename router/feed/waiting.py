"""A sentence for everything that waits: what a deployment or its requests wait for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from memory_manager.fleet.status import DeploymentStatus, WaitingStatus
from memory_manager.policy.residency import Residency
from memory_manager.policy.wait_reason import WaitReason
from router.control.directory import Preparation

__all__ = ["waits_for"]

_REASONS: Mapping[WaitReason, str] = MappingProxyType(
    {
        WaitReason.ASLEEP: "for room on a device, since their model is away",
        WaitReason.WAKING: "for their model, which is on its way from host memory",
        WaitReason.LOADING: "for their model, which is on its way from storage",
        WaitReason.LEAVING: "for their model, which is leaving the device",
        WaitReason.SLOTS: "for a place in the model's batch",
        WaitReason.KV_CAP: "for KV within the cap of the deployment",
        WaitReason.SHARE: "for their tenant's share of the model",
        WaitReason.PROMPT_TOKENS: "for prompts before them, which the steps have no room beside",
        WaitReason.DECODE_PACE: "for the pace of the answers that run",
        WaitReason.KV: "for KV memory",
        WaitReason.LATE: "for requests that can still begin in time",
        WaitReason.BEHIND: "for requests that go first",
        WaitReason.NEXT: "for the next step",
    }
)
_MOVES: Mapping[Residency, str] = MappingProxyType(
    {
        Residency.LOADING: "its weights are on their way from storage to the device",
        Residency.WAKING: "its weights are on their way from host memory to the device",
    }
)


def waits_for(
    status: DeploymentStatus | None,
    preparation: Preparation | None,
    first: WaitingStatus | None,
    *,
    is_withheld: bool,
) -> str | None:
    """Says what a deployment or its requests wait for; None if nothing waits.

    Args:
        status: None if the manager does not know it.
        preparation: None if it is not being made.
        first: the first of its requests in a queue; None if none is among those that are told one by one.
        is_withheld: whether it is not served, for a reason that is shown elsewhere.
    """
    if preparation is not None:
        return f"It is being made: {preparation}."
    if status is None:
        return None if is_withheld else "Its weights are being packed."
    said = []
    if move := _MOVES.get(status.residency):
        said.append(move)
    if status.residency is Residency.DRAINING:
        num_active = sum(each.num_active for each in status.replicas)
        said.append(f"{_requests(num_active)} to end before it leaves the device")
    if status.num_waiting:
        reason = "for their turn" if first is None else _REASONS[first.reason]
        said.append(
            f"{_requests(status.num_waiting)} {'waits' if status.num_waiting == 1 else 'wait'} {reason}"
        )
    num_queued = sum(each.num_queued for each in status.replicas)
    if num_queued:
        said.append(f"{_requests(num_queued)} {'waits' if num_queued == 1 else 'wait'} for room in a batch")
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else None


def _requests(number: int) -> str:
    return f"{number} request{'' if number == 1 else 's'}"
