"""Who is admitted into KV that many share, and who makes way, for any sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.kv_forecast import (
    KVDemand,
    expected_left,
    expected_peak_bytes,
    is_turn_of_late,
    kept_until_tokens,
    making_way,
    mean_with,
)

sequence = st.tuples(st.integers(1, 60), st.integers(0, 500), st.integers(1, 9))
row = st.tuples(sequence, st.integers(-1, 1), st.integers(0, 9), st.booleans())


def demand(rows: list[tuple[tuple[int, int, int], int, int, bool]], first_arrival: int = 0) -> KVDemand:
    """Of rows of ((left, held, size of a token), priority, lost tokens, may go)."""
    shape = np.array([each[0] for each in rows], float).reshape(-1, 3)
    return KVDemand(
        num_left=shape[:, 0],
        held_bytes=shape[:, 1],
        token_bytes=shape[:, 2],
        priority=np.array([each[1] for each in rows], np.int64),
        arrival=np.arange(len(rows), dtype=np.int64)[::-1] + first_arrival,
        num_lost_tokens=np.array([each[2] for each in rows], np.int64),
        may_go=np.array([each[3] for each in rows], bool),
    )


@given(st.lists(sequence, max_size=8))
def test_the_expected_peak_is_the_most_that_is_held_at_any_step(
    sequences: list[tuple[int, int, int]],
) -> None:
    left, held, token_bytes = np.array(sequences, float).reshape(-1, 3).T
    most = max(
        (
            sum(has + step * size for steps, has, size in sequences if steps >= step)
            for step in range(1, max((each[0] for each in sequences), default=0) + 1)
        ),
        default=0,
    )
    assert expected_peak_bytes(left, held, token_bytes) == most


@given(
    running=st.lists(row, max_size=8),
    newcomer=row,
    capacity_bytes=st.integers(0, 6000),
    short_bytes=st.sampled_from([-1, 0, 0, 300, 900]),
    takes_place=st.booleans(),
)
def test_the_fewest_late_ones_make_way_and_only_if_that_is_enough(
    running: list[tuple[tuple[int, int, int], int, int, bool]],
    newcomer: tuple[tuple[int, int, int], int, int, bool],
    capacity_bytes: int,
    short_bytes: int,
    takes_place: bool,
) -> None:
    present, coming = demand(running), demand([newcomer], first_arrival=99)

    def is_enough(gone: list[int]) -> bool:
        left = present.without(np.array(gone, np.int64))
        freed_bytes = sum(running[each][0][1] for each in gone)
        fits = not len(left) or KVDemand.joined((left, coming)).peak_bytes() <= capacity_bytes
        return fits and freed_bytes >= short_bytes

    earliest = {max(n for n, each in enumerate(running) if each[1] == of[1]) for of in running}
    may_go = [
        number
        for number, each in enumerate(running)
        if (each[1] < newcomer[1] or (each[3] and each[1] == newcomer[1])) and number not in earliest
    ]
    may_go.sort(key=lambda number: (running[number][1], running[number][2], number))
    tried = [[], *(may_go[: num + 1] for num in range(len(may_go)))] if takes_place else [[]]
    expected = next((gone for gone in tried if is_enough(gone)), None)
    found = making_way(present, coming, capacity_bytes, short_bytes, takes_place=takes_place)
    assert (None if found is None else found.tolist()) == expected


@given(st.integers(0, 500), st.floats(1, 400), st.integers(1, 500))
def test_more_is_expected_of_each_but_no_more_than_it_asked_for(
    num_output: int, mean: float, remaining: int
) -> None:
    columns = (np.array([value], float) for value in (num_output, mean, num_output + remaining))
    [left] = expected_left(*columns)
    assert 1 <= left <= remaining
    assert left == min(remaining, max(8, mean - num_output))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_the_mean_stays_between_what_it_was_and_what_it_sees(outputs: list[int]) -> None:
    mean = 256.0
    for num_ended, num_output in enumerate(outputs):
        before, mean = mean, mean_with(mean, num_ended, num_output)
        assert min(before, num_output) <= mean <= max(before, num_output)
    if len(outputs) < 19:
        assert abs(mean - (256 + sum(outputs)) / (len(outputs) + 1)) < 1e-6


@given(st.lists(st.booleans(), min_size=32, max_size=160))
def test_of_any_32_admissions_one_is_a_late_ones(whether_late_ones_wait: list[bool]) -> None:
    num_since_late, waited = 0, 0
    for is_one_waiting in whether_late_ones_wait:
        takes_turn = is_one_waiting and is_turn_of_late(num_since_late)
        num_since_late = 0 if takes_turn else num_since_late + 1
        waited = 0 if takes_turn or not is_one_waiting else waited + 1
        assert waited < 32


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_nobody_makes_way_who_has_computed_nothing_and_a_turn_is_kept_for_longer(
    num_found: int, num_more: int
) -> None:
    num_tokens = num_found + num_more
    assert kept_until_tokens(num_found, num_tokens, is_its_turn=False) > num_found
    assert kept_until_tokens(num_found, num_tokens, is_its_turn=True) > num_tokens
