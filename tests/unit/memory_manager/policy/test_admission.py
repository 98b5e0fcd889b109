"""Who is let in, refused or put behind others, and what a worker is given."""

from __future__ import annotations

import math

import pytest

from memory_manager.policy.admission import DeviceAdmission
from memory_manager.policy.claim import Backlog, Obstacle, RequestClaim
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.step_model import StepCosts
from memory_manager.policy.worker_load import HeldBacklog, HeldRequest, ModelUse, WorkerLoad

COSTS = StepCosts(step_s=0.01, decode_s=0.001, prefill_token_s=0.0005)


def use(name: str) -> ModelUse:
    return ModelUse(1.0, 50.0, 9, COSTS)


def held(claim: RequestClaim) -> HeldRequest:
    return HeldRequest(claim, use(claim.model))


def ahead(claim: RequestClaim) -> dict[str, HeldBacklog]:
    return {claim.model: HeldBacklog(Backlog.of(claim), use(claim.model))}


def load(
    *present: RequestClaim,
    capacity: float = 1000.0,
    max_step_tokens: int = 512,
    max_sequences: int = 0,
    is_short: bool = False,
) -> WorkerLoad:
    all_held = [held(each) for each in present]
    return WorkerLoad(
        all_held, max_step_tokens, capacity, 0.0, max_sequences=max_sequences, is_short=is_short
    )


def running(arrival: int, tpot_target_s: float = math.inf, **fields: object) -> RequestClaim:
    values = {"model": "a", "at_s": -1.0, "num_prompt": 100, "num_output": 10, "first_at_s": -0.5}
    values |= {"deadline_s": math.inf, **fields}
    return RequestClaim(arrival=arrival, tpot_target_s=tpot_target_s, **values)  # type: ignore[arg-type]


def coming(deadline_s: float = 1.0, tpot_target_s: float = math.inf, **fields: object) -> RequestClaim:
    values = {"model": "a", "arrival": 99, "at_s": 0.0, "num_prompt": 100, **fields}
    return RequestClaim(deadline_s=deadline_s, tpot_target_s=tpot_target_s, **values)  # type: ignore[arg-type]


def test_a_worker_is_given_no_more_prompts_than_it_computes_in_about_two_steps() -> None:
    unbegun = coming(arrival=1, num_prompt=1023)
    assert load(unbegun, capacity=2000).obstacle(held(coming())) is None
    assert (
        load(unbegun, capacity=2000, max_step_tokens=511).obstacle(held(coming())) is Obstacle.PROMPT_TOKENS
    )
    assert (
        load(unbegun, capacity=2000, max_step_tokens=0).obstacle(held(coming())) is None
    )  # no bound is known


def test_what_is_less_urgent_keeps_no_prompt_waiting() -> None:
    late = coming(arrival=1, deadline_s=-1.0, num_prompt=1600)
    assert load(late).obstacle(held(coming())) is None
    assert load(late).obstacle(held(coming(deadline_s=-1.0))) is not None
    lax = coming(arrival=1, deadline_s=30.0, num_prompt=8192)
    assert load(lax, capacity=1e5).obstacle(held(coming(deadline_s=0.5))) is None
    assert load(lax, capacity=1e5).obstacle(held(coming(deadline_s=31.0))) is Obstacle.PROMPT_TOKENS


def test_kv_that_others_will_need_is_no_room() -> None:
    others = [running(number) for number in range(5)]  # 110 tokens each by now, and 40 more
    assert load(*others, capacity=850).obstacle(held(coming())) is not None
    assert load(*others, capacity=850).waits_for_room(held(coming()), {})
    assert load(*others, capacity=900).obstacle(held(coming())) is None
    assert load(*others, capacity=900).waits_for_room(held(coming()), ahead(coming(arrival=98)))


def test_a_request_of_many_choices_needs_room_for_one_to_begin_and_shuts_out_nobody() -> None:
    others = [running(number) for number in range(4)]
    assert load(*others, capacity=900).obstacle(held(coming(num_choices=100))) is None
    assert load(*others[:3], running(9, num_choices=100), capacity=900).obstacle(held(coming())) is None


def test_paced_sequences_keep_their_pace() -> None:
    paced = [running(number, tpot_target_s=0.04) for number in range(19)]
    assert load(*paced, capacity=1e6).obstacle(held(coming(tpot_target_s=0.04))) is None  # rounds of 30 ms
    assert load(*paced, capacity=1e6).obstacle(held(coming(tpot_target_s=0.03))) is not None
    assert (
        load(*paced, running(50, 0.04), capacity=1e6).obstacle(held(coming(tpot_target_s=0.04))) is not None
    )
    assert (
        load(capacity=1e6).obstacle(held(coming(tpot_target_s=1e-6))) is None
    )  # alone it may at least begin
    assert load(capacity=1e6).obstacle(held(coming(tpot_target_s=0.04, num_choices=500))) is None
    assert load(running(50), capacity=1e6).obstacle(held(coming(tpot_target_s=0.04, num_choices=500))) is None


def test_a_step_that_just_keeps_a_target_is_not_one_sequences_alone() -> None:
    barely = [running(number, tpot_target_s=0.012) for number in range(5)]  # a step with one takes 11 ms
    assert load(*barely[:1], capacity=1e6).obstacle(held(coming(tpot_target_s=0.012))) is None
    assert load(*barely, capacity=1e6).obstacle(held(coming(tpot_target_s=0.012))) is None
    many = [running(number, tpot_target_s=0.012) for number in range(8)]
    assert load(*many, capacity=1e6).obstacle(held(coming(tpot_target_s=0.012))) is Obstacle.DECODE_PACE


def test_a_target_that_nobody_could_keep_holds_nobody_up() -> None:
    hopeless = [running(number, tpot_target_s=0.001) for number in range(30)]
    for tpot_target_s in (0.001, 0.5, math.inf):
        assert load(*hopeless, capacity=1e6).obstacle(held(coming(tpot_target_s=tpot_target_s))) is None


def test_what_is_not_paced_takes_what_the_paced_leave() -> None:
    paced = [running(number, tpot_target_s=0.04) for number in range(10)]
    unpaced = [running(number) for number in range(20, 30)]
    assert load(*paced, *unpaced[:9], capacity=1e6).obstacle(held(coming())) is None
    assert load(*paced, *unpaced, capacity=1e6).obstacle(held(coming())) is not None
    assert load(*unpaced, *unpaced, capacity=1e6).obstacle(held(coming())) is None  # nobody is paced
    assert load(*paced, capacity=1e6, is_short=True).obstacle(held(coming())) is not None


@pytest.mark.parametrize("refuses_miss", [True, False])
def test_what_cannot_begin_in_time_is_refused_or_waits_behind(refuses_miss: bool) -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    sleeping = coming(refuses_miss=refuses_miss)
    assert admission.arrive(sleeping, use, None, 0.0, comes_in_s=2.0) is not refuses_miss
    assert sleeping.predicted_s == pytest.approx(2.06)
    assert (sleeping in admission.queue) is not refuses_miss
    in_time = coming(arrival=100)
    assert admission.arrive(in_time, use, load(), 0.0)
    assert in_time.predicted_s == pytest.approx(0.06)
    order = []
    while (each := admission.next(["a"], lambda claim: None, 0.1)) is not None:
        order.append(each)
    assert order == ([in_time] if refuses_miss else [in_time, sleeping])


def test_other_policies_refuse_nobody() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.FCFS)
    assert admission.arrive(coming(refuses_miss=True), use, None, 0.0, comes_in_s=9.0)


def test_those_for_whom_there_is_no_room_wait_for_others_to_end() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    full = load(*(running(number) for number in range(5)), capacity=850)
    assert full.end_interval_s() == pytest.approx(50 * COSTS.seconds(5, 0) / 5)
    requests = [coming(60.0, arrival=number) for number in (10, 11, 12)]
    for each in requests:
        admission.arrive(each, use, full, 0.0)
    assert all(each.waits_for_room for each in requests)
    for number, each in enumerate(requests, 1):
        assert each.predicted_s == pytest.approx(number * full.end_interval_s() + 0.06, abs=0.01)


def test_who_waits_for_another_model_makes_nobody_wait_for_room() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    busy = load(running(1), running(2, model="b"), capacity=1e6, max_sequences=1)
    stuck = coming(60.0, model="b", arrival=5)
    admission.arrive(stuck, use, busy, 0.0)
    assert stuck.waits_for_room
    free = load(running(2, model="b"), capacity=1e6, max_sequences=1)
    soon = coming(0.5, refuses_miss=True)
    assert admission.arrive(soon, use, free, 0.0)
    assert not soon.waits_for_room


def test_caution_that_puts_everybody_behind_fades() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    for number in range(50):
        each = coming(100.0, arrival=number, at_s=float(number))
        admission.arrive(each, use, load(), float(number))
        admission.next(["a"], lambda claim: None, float(number))
        admission.note_first(each, number + 50.0)
    num_late = 0
    while num_late < 2000:
        each = coming(100.5, arrival=1000 + num_late, at_s=100.0)
        admission.arrive(each, use, load(), 100.0)
        admission.next(["a"], lambda claim: None, 100.0)
        if each.due_s > 0:
            break
        num_late += 1
    assert 10 < num_late < 2000


def test_who_is_refused_rather_than_late_waits_for_others_only_if_its_time_is_long() -> None:
    full = load(*(running(number) for number in range(5)), capacity=850)
    wait_s = full.end_interval_s() + 0.06
    for times, is_let_in in ((5.0, False), (20.0, True)):
        admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
        refusing = coming(times * wait_s, refuses_miss=True)
        assert admission.arrive(refusing, use, full, 0.0) is is_let_in
        waiting = coming(times * wait_s, arrival=100)
        assert admission.arrive(waiting, use, full, 0.0)
        assert waiting.due_s > 0


def test_caution_does_not_fade_by_refusals_that_were_right() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    for number in range(300):
        asleep = coming(arrival=number, refuses_miss=True)
        assert not admission.arrive(asleep, use, None, 0.0, comes_in_s=2.0)
    exactly = coming(0.06, arrival=1000)
    admission.arrive(exactly, use, load(), 0.0)
    assert admission.likely_s(exactly) == pytest.approx(exactly.predicted_s)


def test_a_model_that_runs_as_many_as_it_can_or_has_its_kv_makes_its_own_wait() -> None:
    one = running(1, num_choices=3)
    assert load(one, max_sequences=3).obstacle(held(coming())) is Obstacle.SLOTS
    assert load(one, max_sequences=3).obstacle(held(coming(model="b"))) is None
    assert load(one, max_sequences=4).waits_for_room(held(coming()), ahead(coming(arrival=50)))
    assert not load(one, max_sequences=4).waits_for_room(held(coming()), {})
    capped = HeldRequest(coming(), ModelUse(1.0, 50.0, 9, COSTS, kv_cap_bytes=300.0))
    assert load(one, running(2)).obstacle(capped) is Obstacle.KV_CAP
    assert load(one).obstacle(capped) is None


def test_the_tenant_that_has_had_most_leaves_room_to_others_of_its_priority_or_a_higher_one() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    assert admission.most_served(0.0) == {}
    for arrival, (tenant, priority, service_s) in enumerate(
        [("flood", 0, 9.0), ("modest", 0, 1.0), ("urgent", 1, 5.0)]
    ):
        admission.arrive(coming(99.0, arrival=arrival, tenant=tenant, priority=priority), use, load(), 0.0)
        admission.counters.charge(tenant, service_s, 1.0)
    assert admission.most_served(0.0) == {0: "flood"}
    assert admission.most_served(31.0) == {}
    others = [running(number) for number in range(4)]

    def obstacle(tenant: str, **fields: object) -> Obstacle | None:
        all_held = [held(each) for each in others]
        beside = WorkerLoad(all_held, 512, 900.0, 0.0, most_served={0: "flood"})
        return beside.obstacle(held(coming(tenant=tenant, **fields)))

    assert obstacle("flood") is Obstacle.SHARE
    assert obstacle("flood", priority=1) is None
    assert obstacle("flood", refuses_miss=True) is None
    assert obstacle("modest") is None


def test_mistakes_make_the_next_prediction_longer() -> None:
    admission: DeviceAdmission[RequestClaim] = DeviceAdmission(QueuePolicy.SLO)
    for number in range(40):
        each = coming(100.0, arrival=number, at_s=float(number))
        admission.arrive(each, use, load(), float(number))
        admission.next(["a"], lambda claim: None, float(number))
        admission.note_first(each, number + 3 * each.predicted_s)
    after = coming(100.0, arrival=60, at_s=60.0)
    admission.arrive(after, use, load(), 60.0)
    assert admission.likely_s(after) == pytest.approx(3 * after.predicted_s, rel=0.2)


def test_those_of_lower_priority_make_way() -> None:
    others = [running(number, priority=-1) for number in range(5)]
    assert load(*others, capacity=850).obstacle(held(coming())) is None
    assert load(*others, capacity=850).obstacle(held(coming(priority=-1))) is not None
