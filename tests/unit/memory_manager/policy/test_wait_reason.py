"""The first thing that stands between a request and a worker."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memory_manager.policy.claim import Obstacle, RequestClaim
from memory_manager.policy.residency import Residency
from memory_manager.policy.step_model import StepCosts
from memory_manager.policy.wait_reason import WaitReason, wait_reason
from memory_manager.policy.worker_load import HeldRequest, ModelUse, WorkerLoad

FREE: dict[str, Any] = {
    "takes_requests": True,
    "is_first": True,
    "is_late": False,
    "obstacle": None,
}


@pytest.mark.parametrize(
    ("residency", "changes", "reason"),
    [
        (Residency.RESIDENT, {}, WaitReason.NEXT),
        (Residency.RESIDENT, {"is_late": True}, WaitReason.NEXT),
        (Residency.RESIDENT, {"obstacle": Obstacle.SLOTS, "is_first": False}, WaitReason.SLOTS),
        (Residency.RESIDENT, {"obstacle": Obstacle.SHARE, "is_first": False}, WaitReason.SHARE),
        (Residency.RESIDENT, {"obstacle": Obstacle.KV, "is_first": False}, WaitReason.BEHIND),
        (Residency.RESIDENT, {"is_first": False, "is_late": True}, WaitReason.LATE),
        (Residency.RESIDENT, {"obstacle": Obstacle.KV}, WaitReason.KV),
        (Residency.RESIDENT, {"obstacle": Obstacle.KV, "is_late": True}, WaitReason.KV),
        (Residency.RESIDENT, {"obstacle": Obstacle.PROMPT_TOKENS}, WaitReason.PROMPT_TOKENS),
        (Residency.RESIDENT, {"obstacle": Obstacle.DECODE_PACE}, WaitReason.DECODE_PACE),
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
    return HeldRequest(claim, ModelUse(1.0, 50.0, 1, StepCosts(0.01, 0.01, 0.0)))


@pytest.mark.parametrize(
    ("held", "capacity_bytes", "obstacle"),
    [
        ([], 0.0, None),
        ([request(100), request(100)], 1e9, Obstacle.PROMPT_TOKENS),
        ([request(0, 0.03, num_output=1)] * 2, 1e9, Obstacle.DECODE_PACE),
        ([request(0, num_output=1)], 150.0, Obstacle.KV),
        ([request(0, num_output=1)], 1e9, None),
    ],
)
def test_a_worker_says_what_it_lacks(
    held: list[HeldRequest], capacity_bytes: float, obstacle: Obstacle | None
) -> None:
    load = WorkerLoad(held, 100, capacity_bytes, 0.0)
    newcomer = request(100, 0.03)
    assert load.obstacle(newcomer) is obstacle
