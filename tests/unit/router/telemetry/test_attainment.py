"""Which requests met the targets of their SLO class, as measured from their tokens."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.api import SamplingParams
from mooring.slo import SLOClass
from router.request.request import GenerationRequest
from router.telemetry.attainment import Attainment, Judged
from router.telemetry.metrics import Gauges, Metrics
from router.telemetry.request_metrics import RequestMetrics
from router.telemetry.waits import Spent, Waited

GOLD = SLOClass("gold", ttft_target_s=1.0, tpot_target_s=0.1, goal=0.9)


class Door:
    """Metrics on a clock that the test holds."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.metrics = Metrics(Gauges, clock=lambda: self.now_s)

    def begin(
        self,
        slo_class: SLOClass | None = GOLD,
        n: int = 1,
        waited: Waited = Waited(),
        predicted_ttft_s: float | None = None,
    ) -> RequestMetrics:
        request = GenerationRequest(
            "r1",
            "m",
            (1, 2, 3),
            SamplingParams(),
            n=n,
            tenant="acme",
            arrival_s=self.now_s - sum(waited),
            deadline_s=self.now_s + GOLD.ttft_target_s,
            tpot_target_s=GOLD.tpot_target_s,
            slo_class=slo_class,
        )
        return self.metrics.request(request, waited, predicted_ttft_s)

    def serve(self, first_s: float, last_s: float, num_tokens: int = 11, reason: str = "stop") -> None:
        """A request that gets its first token and its last after so many seconds."""
        measured = self.begin()
        self.now_s += first_s
        measured.tokens(0, 1)
        self.now_s += last_s - first_s
        if num_tokens > 1:
            measured.tokens(0, num_tokens - 1)
        measured.finished(0, reason, num_tokens)
        measured.end()
        measured.end()

    @property
    def entry(self) -> Attainment:
        (entry,) = self.metrics.attainments.entries()
        return entry


@pytest.mark.parametrize(
    ("first_s", "last_s", "num_tokens", "is_met"),
    [
        (1.0, 2.0, 11, True),
        (1.0, 1.0, 1, True),
        (1.25, 2.0, 11, False),
        (0.5, 1.75, 11, False),
        (0.5, 1.75, 21, True),
    ],
)
def test_both_targets_have_to_be_met(first_s: float, last_s: float, num_tokens: int, is_met: bool) -> None:
    door = Door()
    door.serve(first_s, last_s, num_tokens)
    assert door.entry.total == Judged(is_met, not is_met)
    if not is_met:
        (miss,) = door.entry.misses
        assert miss.request_id == "r1"
        assert (miss.ttft_s, miss.tpot_s) == pytest.approx((first_s, (last_s - first_s) / (num_tokens - 1)))


@pytest.mark.parametrize(
    ("first_s", "last_s", "miss"),
    [
        ((0.25, 1.0), (1.25, 2.0), None),
        ((0.25, 1.0), (1.25, 2.5), (1.0, 0.15)),
        ((0.25, 1.0), (1.75, 2.0), (1.0, 0.15)),
        ((0.25, 1.25), (0.75, 1.75), (1.25, 0.05)),
    ],
)
def test_of_several_choices_the_slowest_counts_each_from_its_own_first_token(
    first_s: tuple[float, float], last_s: tuple[float, float], miss: tuple[float, float] | None
) -> None:
    door = Door()
    began_s, measured = door.now_s, door.begin(n=2)
    for at_s, index, is_last in sorted(
        (at_s, index, is_last)
        for is_last, times_s in ((False, first_s), (True, last_s))
        for index, at_s in enumerate(times_s)
    ):
        door.now_s = began_s + at_s
        measured.tokens(index, 10 if is_last else 1)
        if is_last:
            measured.finished(index, "length", 11)
    measured.end()
    assert door.entry.total == Judged(miss is None, miss is not None)
    found = [(each.ttft_s, each.tpot_s) for each in door.entry.misses]
    assert found == ([] if miss is None else [pytest.approx(miss)])


@pytest.mark.parametrize(
    ("first_s", "num_tokens", "left_s", "is_missed"),
    [
        (None, 0, 1.0, False),
        (None, 0, 1.25, True),
        (0.5, 1, 0.5625, False),
        (1.25, 1, 1.25, True),
        (0.5, 11, 1.5, False),
        (0.5, 11, 2.0, True),
        (0.5, 1, 0.75, True),
    ],
)
def test_what_its_client_gives_up_missed_if_it_was_late_by_then(
    first_s: float | None, num_tokens: int, left_s: float, is_missed: bool
) -> None:
    door = Door()
    measured = door.begin()
    if first_s is not None:
        door.now_s += first_s
        measured.tokens(0, 1)
    door.now_s += left_s - (first_s or 0.0)
    if num_tokens > 1:
        measured.tokens(0, num_tokens - 1)
    measured.finished(0, "abort", num_tokens)
    measured.end()
    judged = [each.total for each in door.metrics.attainments.entries()]
    assert judged == ([Judged(0, 1)] if is_missed else [])


def test_a_choice_that_never_began_is_late_however_early_the_others_were() -> None:
    door = Door()
    for wait_s in (0.5, 1.5):
        measured = door.begin(n=2)
        measured.tokens(0, 1)
        measured.finished(0, "stop", 1)
        door.now_s += wait_s
        measured.finished(1, "abort", 0)
        measured.end()
    assert door.entry.total == Judged(0, 1)
    assert door.entry.misses[0].ttft_s is None


def test_what_is_its_callers_fault_counts_as_neither() -> None:
    door = Door()
    measured = door.begin()
    door.now_s += 2.0
    measured.finished(0, "error", 0)
    measured.end(is_callers_fault=True)
    assert door.metrics.attainments.entries() == []


def test_what_fails_or_is_refused_missed() -> None:
    door = Door()
    door.serve(0.5, 1.0, reason="error")
    mixed = door.begin(n=2)
    mixed.finished(0, "abort", 0)
    mixed.finished(1, "error", 0)
    mixed.end()
    door.metrics.refused("r2", "m", "acme", GOLD, Waited(0.5, 0.25))
    door.serve(0.5, 1.0)
    assert door.entry.total == Judged(1, 3)
    assert [each.ttft_s for each in door.entry.misses] == [0.5, None, None]
    assert door.entry.misses[-1].spent == Spent(0.5, 0.25, None, None), "no worker had it"


def test_a_miss_says_where_its_time_went() -> None:
    door = Door()
    slow = door.begin(n=2, waited=Waited(0.25, 0.5))
    door.now_s += 1.0
    slow.tokens(0, 1)
    door.now_s += 0.5
    slow.tokens(1, 1)  # the slowest choice counts
    door.now_s += 2.0
    slow.tokens(1, 1)
    slow.finished(0, "stop", 1)
    slow.finished(1, "stop", 2)
    door.now_s += 0.25
    slow.end()
    silent = door.begin(n=2, waited=Waited(0.5, 0.25))
    door.now_s += 1.0
    silent.tokens(0, 1)
    door.now_s += 2.0
    silent.finished(0, "stop", 1)
    silent.finished(1, "error", 0)
    silent.end()
    spent = [each.spent for each in door.entry.misses]
    assert spent == [Spent(0.25, 0.5, 1.5, 2.25), Spent(0.5, 0.25, 3.0, None)]


@pytest.mark.parametrize(
    ("wake_s", "predicted_s", "measured_s", "wake", "outcome", "error"),
    [
        (0.0, 0.5, 2.0, "no", "off", 0.75),
        (0.5, 2.5, 2.0, "yes", "near", 0.25),
        (0.5, 0.0, 2.0, "yes", "off", 1.0),
        (0.0, 0.03125, 0.0625, "no", "near", 0.5),  # 31 ms are few
    ],
)
def test_a_prediction_is_held_against_what_was_measured(
    wake_s: float, predicted_s: float, measured_s: float, wake: str, outcome: str, error: float
) -> None:
    door = Door()
    unforeseen = door.begin(predicted_ttft_s=None)
    endless = door.begin(predicted_ttft_s=math.inf)
    door.begin(predicted_ttft_s=0.5).end()  # it got no token
    measured = door.begin(waited=Waited(0.0, wake_s), predicted_ttft_s=predicted_s)
    door.now_s += measured_s - wake_s
    for each in (unforeseen, endless, measured, measured):
        each.tokens(0, 1)
    found = {
        (sample.name, *(sample.labels[each] for each in ("model", "wake"))): sample.value
        for family in text_string_to_metric_families(door.metrics.expose().decode())
        for sample in family.samples
        if "prediction" in sample.name and sample.labels.get("outcome", outcome) == outcome
    }
    name = "mooring_ttft_prediction"
    assert found[f"{name}_error_ratio_sum", "m", wake] == pytest.approx(error)
    assert found[f"{name}_error_ratio_count", "m", wake] == 1
    assert found[f"{name}s_total", "m", wake] == 1
    assert {each[1:] for each in found} == {("m", wake)}


def test_a_tenant_without_a_class_is_counted_by_the_server_s_own_targets() -> None:
    door = Door()
    measured = door.begin(slo_class=None)
    measured.tokens(0, 1)
    measured.finished(0, "stop", 1)
    measured.end()
    assert (door.entry.slo_class, door.entry.goal, door.entry.total) == ("best-effort", None, Judged(1, 0))


def test_the_budget_is_what_is_left_of_the_misses_that_the_goal_allows() -> None:
    assert Judged(0, 0).attained is None
    assert Judged(0, 0).budget_left(0.9) == 1
    assert Judged(95, 5).attained == 0.95
    assert Judged(95, 5).budget_left(0.9) == pytest.approx(0.5)
    assert Judged(70, 30).budget_left(0.9) == pytest.approx(-2)
    for goal, num_requests in ((0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)):
        assert Judged(num_requests - 1, 1).budget_left(goal) == 0, "just used up"
    assert Judged(100, 0).budget_left(1) == 1
    assert Judged(99, 1).budget_left(1) == 0
    assert Judged(0, 5).budget_left(1) == 0


def test_prometheus_reads_windows_and_totals() -> None:
    door = Door()
    door.serve(2.0, 2.0, 1)
    door.now_s += 600
    for _ in range(3):
        door.serve(0.5, 0.5, 1)
    door.now_s += 1.0
    assert shown(door) == {
        ("mooring_slo_attainment_ratio", "1m"): 1.0,
        ("mooring_slo_attainment_ratio", "1h"): 0.75,
        ("mooring_slo_goal_ratio", ""): door.entry.goal,
        ("mooring_slo_requests_total", "met"): 3.0,
        ("mooring_slo_requests_total", "missed"): 1.0,
    }
    door.now_s += 7200
    names = {name for name, _ in shown(door)}
    assert names == {"mooring_slo_requests_total", "mooring_slo_goal_ratio"}, "an empty window has no share"


def shown(door: Door) -> dict[tuple[str, str], float]:
    """The samples of attainment, by name and the label that tells them apart."""
    found = {}
    for family in text_string_to_metric_families(door.metrics.expose().decode()):
        for sample in family.samples:
            if sample.name.startswith("mooring_slo_"):
                last = sample.labels.get("window") or sample.labels.get("outcome", "")
                assert [sample.labels[label] for label in ("tenant", "class", "model")] == [
                    "acme",
                    "gold",
                    "m",
                ]
                found[sample.name, last] = sample.value
    return found
