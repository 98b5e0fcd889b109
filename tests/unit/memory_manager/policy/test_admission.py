"""Who is let in, refused or put behind others, and what a worker is given."""

from __future__ import annotations

import math

import pytest

from memory_manager.policy.admission import DeviceAdmission
from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.worker_load import HeldRequest, WorkerLoad
from ops.capacity.machine import StepCosts

COSTS = StepCosts(step_s=0.01, decode_s=0.001, prefill_token_s=0.0005)


def held(claim: RequestClaim) -> HeldRequest:
    return HeldRequest(claim, 0 if claim.first_at_s is not None else claim.num_prompt, 1.0, 50.0, COSTS)


def load(
    *present: RequestClaim, capacity: float = 1000.0, max_step_tokens: int = 512, is_short: bool = False
) -> WorkerLoad:
    return WorkerLoad([held(each) for each in present], max_step_tokens, capacity, 0.0, is_short=is_short)


def running(arrival: int, tpot_target_s: float = math.inf, **fields: object) -> RequestClaim:
    values = {"model": "a", "at_s": -1.0, "num_prompt": 100, "num_output": 10, "first_at_s": -0.5}
    values |= {"deadline_s": math.inf, **fields}
    return RequestClaim(arrival=arrival, tpot_target_s=tpot_target_s, **values)  # type: ignore[arg-type]


def coming(deadline_s: float = 1.0, tpot_target_s: float = math.inf, **fields: object) -> RequestClaim:
    values = {"model": "a", "arrival": 99, "at_s": 0.0, "num_prompt": 100, **fields}
    return RequestClaim(deadline_s=deadline_s, tpot_target_s=tpot_target_s, **values)  # type: ignore[arg-type]


def test_a_worker_is_given_no_more_prompts_than_it_computes_in_about_two_steps() -> None:
    unbegun = coming(arrival=1, num_prompt=511)
    assert load(unbegun).may_begin(held(coming()))
    assert not load(unbegun, max_step_tokens=511).may_begin(held(coming()))
    assert load(unbegun, max_step_tokens=0).may_begin(held(coming()))  # no bound is known


def test_what_is_less_urgent_keeps_no_prompt_waiting() -> None:
    late = coming(arrival=1, deadline_s=-1.0, num_prompt=600)
    assert load(late).may_begin(held(coming()))
    assert not load(late).may_begin(held(coming(deadline_s=-1.0)))


def test_kv_that_others_will_need_is_no_room() -> None:
    others = [running(number) for number in range(5)]  # 110 tokens each by now, and 40 more
    assert not load(*others, capacity=850).may_begin(held(coming()))
    assert load(*others, capacity=850).waits_for_room(held(coming()), [])
    assert load(*others, capacity=900).may_begin(held(coming()))
    assert load(*others, capacity=900).waits_for_room(held(coming()), [held(coming(arrival=98))])


def test_a_request_of_many_choices_needs_room_for_one_to_begin_and_shuts_out_nobody() -> None:
    others = [running(number) for number in range(4)]
    assert load(*others, capacity=900).may_begin(held(coming(num_choices=100)))
    assert load(*others[:3], running(9, num_choices=100), capacity=900).may_begin(held(coming()))


def test_paced_sequences_keep_their_pace() -> None:
    paced = [running(number, tpot_target_s=0.04) for number in range(19)]
    assert load(*paced, capacity=1e6).may_begin(held(coming(tpot_target_s=0.04)))  # rounds of 30 ms
    assert not load(*paced, capacity=1e6).may_begin(held(coming(tpot_target_s=0.03)))
    assert not load(*paced, running(50, 0.04), capacity=1e6).may_begin(held(coming(tpot_target_s=0.04)))
    assert load(capacity=1e6).may_begin(held(coming(tpot_target_s=1e-6)))  # alone it may at least begin
    assert load(capacity=1e6).may_begin(held(coming(tpot_target_s=0.04, num_choices=500)))
    assert load(running(50), capacity=1e6).may_begin(held(coming(tpot_target_s=0.04, num_choices=500)))


def test_a_target_that_nobody_could_keep_holds_nobody_up() -> None:
    hopeless = [running(number, tpot_target_s=0.001) for number in range(30)]
    for tpot_target_s in (0.001, 0.5, math.inf):
        assert load(*hopeless, capacity=1e6).may_begin(held(coming(tpot_target_s=tpot_target_s)))


def test_what_is_not_paced_takes_what_the_paced_leave() -> None:
    paced = [running(number, tpot_target_s=0.04) for number in range(10)]
    unpaced = [running(number) for number in range(20, 30)]
    assert load(*paced, *unpaced[:9], capacity=1e6).may_begin(held(coming()))
    assert not load(*paced, *unpaced, capacity=1e6).may_begin(held(coming()))
    assert load(*unpaced, *unpaced, capacity=1e6).may_begin(held(coming()))  # nobody is paced
    assert not load(*paced, capacity=1e6, is_short=True).may_begin(held(coming()))


@pytest.mark.parametrize("refuses_miss", [True, False])
def test_what_cannot_begin_in_time_is_refused_or_waits_behind(refuses_miss: bool) -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    sleeping = coming(refuses_miss=refuses_miss)
    assert admission.arrive(sleeping, held, None, 0.0, comes_in_s=2.0) is not refuses_miss
    assert sleeping.predicted_s == pytest.approx(2.06)
    assert (sleeping in admission.queue) is not refuses_miss
    in_time = coming(arrival=100)
    assert admission.arrive(in_time, held, load(), 0.0)
    assert in_time.predicted_s == pytest.approx(0.06)
    order = []
    while (each := admission.next(["a"], lambda claim: True, 0.1)) is not None:
        order.append(each)
    assert order == ([in_time] if refuses_miss else [in_time, sleeping])


def test_other_policies_refuse_nobody() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.FCFS)
    assert admission.arrive(coming(refuses_miss=True), held, None, 0.0, comes_in_s=9.0)


def test_grants_tell_how_long_those_wait_for_whom_there_is_no_room() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    full = load(*(running(number) for number in range(5)), capacity=850)
    for number in range(10, 16):
        admission.arrive(coming(60.0, arrival=number), held, full, 0.0)
    for grants in range(4):
        admission.next(["a"], lambda claim: True, 2.0 * grants)
    last = coming(60.0, arrival=50, at_s=6.0)
    admission.arrive(last, held, full, 6.0)
    assert last.waits_for_room
    assert last.predicted_s == pytest.approx(3 * 2.0, abs=0.3)


def test_mistakes_make_the_next_prediction_longer() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    for number in range(40):
        each = coming(100.0, arrival=number, at_s=float(number))
        admission.arrive(each, held, load(), float(number))
        admission.next(["a"], lambda claim: True, float(number))
        admission.note_first(each, number + 3 * each.predicted_s)
    after = coming(100.0, arrival=60, at_s=60.0)
    admission.arrive(after, held, load(), 60.0)
    assert admission.likely_s(after) == pytest.approx(3 * after.predicted_s, rel=0.2)


def test_those_of_lower_priority_make_way() -> None:
    others = [running(number, priority=-1) for number in range(5)]
    assert load(*others, capacity=850).may_begin(held(coming()))
    assert not load(*others, capacity=850).may_begin(held(coming(priority=-1)))
