"""A worker that has nothing begins whatever comes first."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.step_model import StepCosts
from memory_manager.policy.worker_load import HeldRequest, ModelUse, WorkerLoad

COSTS = st.builds(StepCosts, st.floats(0, 10), st.floats(0, 1), st.floats(0, 0.1))


@given(
    costs=COSTS,
    num_prompt=st.integers(1, 100_000),
    num_choices=st.integers(1, 128),
    deadline_s=st.sampled_from([-1.0, 1.0, math.inf]),
    tpot_target_s=st.sampled_from([1e-6, 0.1, math.inf]),
    max_step_tokens=st.sampled_from([0, 1, 512]),
    capacity_bytes=st.floats(0, 1e9),
    token_bytes=st.floats(0, 1e6),
)
def test_an_idle_worker_begins_whatever_comes(
    costs: StepCosts,
    num_prompt: int,
    num_choices: int,
    deadline_s: float,
    tpot_target_s: float,
    max_step_tokens: int,
    capacity_bytes: float,
    token_bytes: float,
) -> None:
    claim = RequestClaim(
        "a", 0, 0.0, deadline_s, tpot_target_s, num_prompt=num_prompt, num_choices=num_choices
    )
    load = WorkerLoad([], max_step_tokens, capacity_bytes, 0.0, most_served={0: ""})
    assert load.obstacle(HeldRequest(claim, ModelUse(token_bytes, 100.0, 9, costs))) is None
