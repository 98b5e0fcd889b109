"""The first thing that stands between a request and a worker."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.residency import Residency
from memory_manager.policy.wait_reason import WaitReason, wait_reason
from memory_manager.policy.worker_load import HeldRequest, Shortage, WorkerLoad
from ops.capacity.machine import StepCosts

FREE: dict[str, Any] = {
    "takes_requests": True,
    "has_slot": True,
    "is_first": True,
    "is_late": False,
    "shortage": None,
}


@pytest.mark.parametrize(
    ("residency", "changes", "reason"),
    [
        (Residency.RESIDENT, {}, WaitReason.NEXT),
        (Residency.RESIDENT, {"is_late": True}, WaitReason.NEXT),
        (Residency.RESIDENT, {"has_slot": False, "is_first": False}, WaitReason.SLOTS),
        (Residency.RESIDENT, {"is_first": False}, WaitReason.BEHIND),
        (Residency.RESIDENT, {"is_first": False, "is_late": True}, WaitReason.LATE),
        (Residency.RESIDENT, {"shortage": Shortage.KV}, WaitReason.KV),
        (Residency.RESIDENT, {"shortage": Shortage.KV, "is_late": True}, WaitReason.KV),
        (Residency.RESIDENT, {"shortage": Shortage.PROMPT_TOKENS}, WaitReason.PROMPT_TOKENS),
        (Residency.RESIDENT, {"shortage": Shortage.DECODE_PACE}, WaitReason.DECODE_PACE),
        (Residency.RESIDENT, {"takes_requests": False}, WaitReason.LEAVING),
        (Residency.DRAINING, {"takes_requests": False}, WaitReason.LEAVING),
        (Residency.WAKING, {"takes_requests": False, "is_late": True}, WaitReason.WAKING),
        (Residency.LOADING, {"takes_requests": False}, WaitReason.LOADING),
        *((each, {"takes_requests": False}, WaitReason.ASLEEP) for each in
          (Residency.WARM, Residency.COLD, Residency.FAILED)),
    ],
)  # fmt: skip
def test_the_first_thing_in_the_way_is_the_reason(
    residency: Residency, changes: dict[str, Any], reason: WaitReason
) -> None:
    assert wait_reason(residency, **{**FREE, **changes}) is reason


def request(num_to_compute: int, tpot_target_s: float = math.inf, num_output: int = 0) -> HeldRequest:
    claim = RequestClaim(
        *("a", 0, 0.0, math.inf, tpot_target_s),
        num_prompt=100,
        most_output=100,
        first_at_s=None if num_to_compute else 0.0,
        num_output=num_output,
    )
    return HeldRequest(claim, num_to_compute, 1.0, 50.0, StepCosts(0.01, 0.01, 0.0))


@pytest.mark.parametrize(
    ("held", "capacity_bytes", "shortage"),
    [
        ([], 0.0, None),
        ([request(100)], 1e9, Shortage.PROMPT_TOKENS),
        ([request(0, 0.03, num_output=1)], 1e9, Shortage.DECODE_PACE),
        ([request(0, num_output=1)], 150.0, Shortage.KV),
        ([request(0, num_output=1)], 1e9, None),
    ],
)
def test_a_worker_says_what_it_lacks(
    held: list[HeldRequest], capacity_bytes: float, shortage: Shortage | None
) -> None:
    load = WorkerLoad(held, 100, capacity_bytes, 0.0)
    newcomer = request(100, 0.03)
    assert load.shortage(newcomer) is shortage
    assert load.may_begin(newcomer) is (shortage is None)
