"""The rule of how many replicas there are, with a clock held in the hand."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.config import PlannerConfig
from memory_manager.policy.scaling import Scale, rescale

CONFIG = PlannerConfig(requests_per_replica=4, scale_up_after_s=1, scale_down_after_s=10)


def after(scale: Scale, num_requests: int, seconds: float, num_up: int = 1, max_replicas: int = 3) -> Scale:
    """The scale when the load has been so for a time that begins at 0."""
    first = rescale(scale, num_requests, num_up, max_replicas, 0.0, CONFIG)
    return rescale(first, num_requests, num_up, max_replicas, seconds, CONFIG)


def test_a_crowd_that_stays_gets_another_replica_and_one_that_passes_does_not() -> None:
    assert after(Scale(), 5, 0.9).num_replicas == 1
    assert after(Scale(), 5, 1.0) == Scale(2)
    crowded = rescale(Scale(), 5, 1, 3, 0.0, CONFIG)
    assert crowded.due_s(CONFIG) == 1.0
    assert rescale(crowded, 4, 1, 3, 0.5, CONFIG) == Scale()
    assert after(Scale(), 4, 100) == Scale()


def test_a_replica_goes_when_the_others_could_carry_the_load_at_half() -> None:
    assert after(Scale(2), 2, 9.9, num_up=2).num_replicas == 2
    assert after(Scale(2), 2, 10.0, num_up=2) == Scale(1)
    assert after(Scale(2), 3, 100, num_up=2) == Scale(2)
    assert rescale(Scale(2), 2, 2, 3, 5.0, CONFIG).due_s(CONFIG) == 15.0


def test_never_beyond_what_is_allowed_and_one_again_when_none_is_up() -> None:
    assert after(Scale(), 1000, 100, max_replicas=1) == Scale()
    assert after(Scale(2), 1000, 100, num_up=2, max_replicas=2) == Scale(2)
    assert after(Scale(3), 9, 0, num_up=3, max_replicas=2).num_replicas == 2
    assert rescale(Scale(3, crowded_since_s=0.0), 9, 0, 3, 50.0, CONFIG) == Scale()


@given(
    loads=st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 20)), min_size=1, max_size=60),
    max_replicas=st.integers(1, 4),
)
def test_one_step_at_a_time_never_sooner_than_it_says_and_settles(
    loads: list[tuple[float, int]], max_replicas: int
) -> None:
    scale, now_s = Scale(), 0.0
    for pause_s, num_requests in loads:
        now_s += pause_s
        before, due_s = scale, scale.due_s(CONFIG)
        scale = rescale(scale, num_requests, scale.num_replicas, max_replicas, now_s, CONFIG)
        assert 1 <= scale.num_replicas <= max_replicas
        assert abs(scale.num_replicas - before.num_replicas) <= 1
        if scale.num_replicas != before.num_replicas:
            assert due_s <= now_s
    num_requests = loads[-1][1]
    for _ in range(10):
        due_s = scale.due_s(CONFIG)
        now_s = due_s if due_s < math.inf else now_s + 1
        scale = rescale(scale, num_requests, scale.num_replicas, max_replicas, now_s, CONFIG)
    assert scale.due_s(CONFIG) == math.inf, "a steady load moves nothing"
