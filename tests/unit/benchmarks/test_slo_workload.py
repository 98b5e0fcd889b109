"""Traces of tenants, and how their requests are judged."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from benchmarks.replay import Targets
from benchmarks.slo.client import TimedAnswer
from benchmarks.slo.judged import Course, judge, score_predictions
from benchmarks.slo.real import course_of
from benchmarks.slo.workload import BATCH, TENANTS, TenantRequest, TenantWorkload, claims
from benchmarks.traces import TraceRequest
from memory_manager.policy.step_model import StepCosts

COSTS = StepCosts(step_s=0.01, decode_s=0.001, prefill_token_s=0.0002)
WORKLOAD = TenantWorkload(("a", "b", "c"), 2)
TIGHT, LOOSE, BURSTY, NIGHTLY = TENANTS


def test_tenants_have_their_shares_and_come_in_order() -> None:
    drawn = WORKLOAD.draw(20.0, 400.0, seed=3)
    assert drawn == sorted(drawn, key=lambda each: each.request.at_s)
    num = Counter(each.tenant.name for each in drawn)
    for tenant in TENANTS:
        assert num[tenant.name] / len(drawn) == pytest.approx(tenant.share, abs=0.06)
        low, high = tenant.output_tokens
        assert all(low <= each.request.max_tokens <= high for each in drawn if each.tenant is tenant)
    assert sum(each.share for each in TENANTS) == pytest.approx(1.0)


def test_a_seed_gives_one_trace() -> None:
    assert WORKLOAD.draw(5.0, 20.0, seed=1) == WORKLOAD.draw(5.0, 20.0, seed=1)
    assert WORKLOAD.draw(5.0, 20.0, seed=1) != WORKLOAD.draw(5.0, 20.0, seed=2)


def test_targets_are_multiples_of_what_one_request_takes_alone() -> None:
    targets = WORKLOAD.targets(COSTS)
    assert set(targets) == {"tight", "loose", "bursty"}
    assert targets["tight"].ttft_s == pytest.approx(10 * COSTS.seconds(0, 48))
    assert targets["tight"].tpot_s == pytest.approx(10 * COSTS.seconds(1, 0))
    assert targets["bursty"].ttft_s == pytest.approx(40 * COSTS.seconds(0, 48))
    assert targets["loose"].tpot_s == pytest.approx(15 * COSTS.seconds(1, 0))


def test_only_who_is_promised_something_is_refused_and_goes_first() -> None:
    drawn = WORKLOAD.draw(20.0, 10.0, seed=0)
    targets = WORKLOAD.targets(COSTS)
    own = Targets(3.0, 0.5)
    for best_effort, ttft_s in ((None, math.inf), (own, 3.0)):
        more = () if best_effort is None else (best_effort,)
        for each, claim in zip(drawn, claims(drawn, WORKLOAD.models, targets, *more), strict=True):
            is_batch = each.tenant.name == BATCH
            assert (claim.refuses_miss, claim.priority) == (not is_batch, int(not is_batch))
            promised_s = ttft_s if is_batch else targets[each.tenant.name].ttft_s
            assert claim.deadline_s == pytest.approx(each.request.at_s + promised_s)


def course(tenant: object = TIGHT, **fields: object) -> Course:
    defaults = {
        "tenant": tenant,
        "is_refused": False,
        "meets": True,
        "first_s": 0.1,
        "waited_s": 0.1,
        "ended_at_s": 1.0,
        "predicted_s": 0.1,
        "ttft_target_s": 0.2,
    }
    return Course(**{**defaults, **fields})  # type: ignore[arg-type]


def test_a_run_is_judged_by_tenant() -> None:
    refused = {"is_refused": True, "meets": False, "first_s": None, "ended_at_s": None, "predicted_s": None}
    found = judge(
        [
            course(),
            course(meets=False, first_s=0.3, waited_s=0.3),
            course(**refused),
            course(NIGHTLY, ended_at_s=10.0, ttft_target_s=math.inf),
            course(NIGHTLY, ended_at_s=10.1, ttft_target_s=math.inf),
        ],
        duration_s=10.0,
    )
    assert found.num == {"batch": 2, "tight": 3}
    assert found.attained == {"batch": 1, "tight": 1}
    assert found.refused == {"batch": 0, "tight": 1}
    assert found.completed == {"batch": 1, "tight": 2}
    assert found.attainment("tight") == pytest.approx(1 / 3)
    assert (found.goodput_per_s, found.completed_per_s) == (pytest.approx(0.2), pytest.approx(0.3))
    assert found.accepted_met == pytest.approx(0.5), "of the two that were promised something"
    assert found.ttft_mean_s == pytest.approx(0.6 / 4)
    assert (found.predictions.num, found.interactive_predictions.num) == (4, 2)


@pytest.mark.parametrize(
    ("predicted_s", "first_s", "is_within"),
    [(1.2, 1.0, True), (1.26, 1.0, False), (0.74, 1.0, False), (0.05, 0.1, True), (0.151, 0.1, False)],
)
def test_a_prediction_may_be_off_by_a_quarter_or_50_ms(
    predicted_s: float, first_s: float, *, is_within: bool
) -> None:
    score = score_predictions([course(predicted_s=predicted_s, first_s=first_s)])
    assert (score.num, score.within) == (1, float(is_within))
    assert score.mape == pytest.approx(abs(predicted_s - first_s) / first_s)


def test_without_a_first_token_nothing_is_known_of_a_prediction() -> None:
    assert score_predictions([course(first_s=None), course(predicted_s=None)]).num == 0


def test_what_a_client_saw_is_judged_by_the_targets_of_its_tenant() -> None:
    wanted = TenantRequest(TIGHT, TraceRequest(2.0, "a", (1,), 3, 0))
    targets = Targets(0.2, 0.1)
    met = course_of(
        wanted, TimedAnswer(first_s=0.1, end_s=0.3, num_tokens=3, error="", predicted_s=0.1), targets
    )
    assert met.meets
    assert met.ended_at_s == pytest.approx(2.3)
    late = course_of(wanted, TimedAnswer(first_s=0.3, end_s=0.5, num_tokens=3, error=""), targets)
    slow = course_of(wanted, TimedAnswer(first_s=0.1, end_s=0.4, num_tokens=3, error=""), targets)
    cut = course_of(wanted, TimedAnswer(first_s=0.1, end_s=0.2, num_tokens=2), targets)
    refused = course_of(
        wanted, TimedAnswer(refused_in_s=0.01, end_s=0.01, error="503 slo_unattainable"), targets
    )
    assert not any(each.meets for each in (late, slow, cut, refused))
    assert [each.ended_at_s is None for each in (late, slow, cut, refused)] == [False, False, True, True]
    assert [each.is_refused for each in (late, slow, cut, refused)] == [False, False, False, True]
