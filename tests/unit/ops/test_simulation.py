"""Requests in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from memory_manager.config import PlannerConfig
from memory_manager.policy.step_model import StepCosts
from ops.capacity.machine import Machine, SimulatedRequest
from ops.capacity.policies import Elastic, Static, SwapOneAtATime
from ops.capacity.simulation import ResidencyPolicy, Simulation

COSTS = StepCosts(step_s=0.010, decode_s=0.001, prefill_token_s=0.0001)
MACHINE = Machine(COSTS, num_resident=2, kv_tokens=2000, wake_s=0.02, ttft_target_s=0.25, tpot_target_s=0.1)
CONFIG = PlannerConfig(ttft_target_s=0.25, tpot_target_s=0.1)


def requests(*rows: tuple[float, int, int, int]) -> list[SimulatedRequest]:
    """Of rows of (seconds, model, prompt, output)."""
    return [
        SimulatedRequest(
            str(model),
            number,
            at_s,
            at_s + MACHINE.ttft_target_s,
            MACHINE.tpot_target_s,
            num_prompt=num_prompt,
            total_output=num_output,
        )
        for number, (at_s, model, num_prompt, num_output) in enumerate(rows)
    ]


def run(policy: ResidencyPolicy, asked: list[SimulatedRequest], machine: Machine = MACHINE) -> Simulation:
    simulation = Simulation(machine, 3, policy)
    simulation.run(asked, patience_s=60.0)
    return simulation


def crowd(num_requests: int, per_s: float, seed: int = 1) -> list[SimulatedRequest]:
    rng = random.Random(seed)
    rows, at_s = [], 0.0
    for _ in range(num_requests):
        at_s += rng.expovariate(per_s)
        rows.append((at_s, rng.choices(range(3), (5, 3, 2))[0], rng.randint(20, 60), rng.randint(50, 150)))
    return requests(*rows)


def test_a_request_alone_takes_what_its_steps_cost() -> None:
    [asked] = requests((1.0, 0, 100, 11))
    run(Elastic(CONFIG), [asked])
    assert asked.first_at_s == pytest.approx(1.0 + COSTS.seconds(0, 100))
    assert asked.end_at_s == pytest.approx(asked.first_at_s + 10 * COSTS.seconds(1, 0))  # type: ignore[operator]
    assert asked.meets


@pytest.mark.parametrize("policy", [Elastic(CONFIG), SwapOneAtATime()], ids=["elastic", "swap"])
def test_all_end_and_nothing_is_held_then(policy: ResidencyPolicy) -> None:
    asked = crowd(300, 2.0)
    simulation = run(policy, asked)
    assert all(each.num_output == each.total_output for each in asked if each.end_at_s is not None)
    assert sum(each.end_at_s is None for each in asked) == sum(
        len(list(model.requests())) for model in simulation.models
    )
    held = sum(each.num_computed for model in simulation.models for each in model.running)
    assert simulation._held == held <= MACHINE.kv_tokens


def test_a_fixed_partition_refuses_what_has_no_part() -> None:
    asked = crowd(100, 1.0)
    run(Static(), asked)
    assert {each.model for each in asked if each.end_at_s is None} == {"2"}


def test_what_was_away_goes_on_from_where_it_was() -> None:
    """Two models take turns on a device that holds one, and both meet their targets."""
    machine = replace(MACHINE, num_resident=1)
    asked = requests((0.0, 0, 30, 120), (0.5, 1, 30, 120))
    simulation = run(Elastic(CONFIG), asked, machine)
    assert all(each.meets for each in asked)
    assert simulation.num_moves >= 2


def test_late_requests_keep_nobody_from_being_in_time() -> None:
    """Far beyond what the device can do, as many are in time as it can do, and not none."""
    asked = crowd(600, 12.0)
    run(Elastic(CONFIG), asked, replace(MACHINE, num_resident=3))
    capacity_per_s = 3.0  # and some: KV for 20 requests of 6 s
    in_time = sum(each.meets for each in asked)
    assert in_time > capacity_per_s * asked[-1].at_s * 0.8
