"""When KV is copied rather than computed again, and what host memory it may take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.torch.kv.swap import CopyRates, RunningRate, SwapSpace, copy_is_quicker, seconds_to_redo
from mooring.errors import InternalError


@pytest.mark.parametrize(
    ("rates", "quicker"),
    [
        (CopyRates(1000.0, 1e9, 1e9), True),  # 100 ms of computing, 20 ms of copying
        (CopyRates(100_000.0, 1e9, 1e9), False),  # 1 ms of computing
        (CopyRates(1000.0, 1e8, 1e9), False),  # slow on the way out
        (CopyRates(1000.0, 1e9, 1e8), False),  # and back
        (CopyRates(None, 1e9, 1e9), False),  # nobody knows
    ],
)
def test_the_quicker_of_the_two_by_the_rates(rates: CopyRates, quicker: bool) -> None:
    assert copy_is_quicker(100, 10_000_000, 10_000_000, rates) is quicker


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.floats(1, 1e6),
    st.floats(1, 1e12),
)
def test_more_tokens_speak_for_copying_and_more_bytes_against(
    num_tokens: int, out_bytes: int, in_bytes: int, tokens_per_s: float, bytes_per_s: float
) -> None:
    rates = CopyRates(tokens_per_s, bytes_per_s, bytes_per_s)
    if copy_is_quicker(num_tokens, out_bytes, in_bytes, rates):
        assert copy_is_quicker(num_tokens + 1, out_bytes, in_bytes, rates)
        assert copy_is_quicker(num_tokens, out_bytes // 2, in_bytes // 2, rates)


@pytest.mark.parametrize(
    ("rates", "room_bytes", "seconds"),
    [
        (CopyRates(1000.0, 1e9, 1e9), 10**9, [0.02, 0.001]),  # copied, and computed
        (CopyRates(1000.0, 1e9, 1e9), 10**6, [0.1, 0.001]),  # there is no room for the copy
        (CopyRates(None, 1e9, 1e9), 10**9, [0.1, 0.001]),  # which is not made before prefill was measured
    ],
)
def test_what_is_lost_costs_the_quicker_of_copying_and_computing(
    rates: CopyRates, room_bytes: int, seconds: list[float]
) -> None:
    num_tokens, num_bytes = np.array([100, 1]), np.array([1e7, 1e7])
    found = seconds_to_redo(num_tokens, num_bytes, 1000.0, rates, room_bytes)
    assert found.tolist() == pytest.approx(seconds)


def test_a_rate_follows_what_is_measured() -> None:
    rate = RunningRate()
    rate.add(0, 1.0)
    assert rate.per_s is None
    rate.add(100, 1.0)
    assert rate.per_s == pytest.approx(100)
    for _ in range(50):
        rate.add(100, 0.5)
    assert rate.per_s == pytest.approx(200, rel=0.01)


def test_host_memory_is_counted_and_bounded() -> None:
    space = SwapSpace(1000, torch.device("cpu"))
    first, second = space.buffer(600), space.buffer(500)
    assert first is not None
    assert (first.dtype, first.shape, space.used_bytes) == (torch.uint8, (600,), 600)
    assert second is None
    space.give_back(600)
    assert space.used_bytes == 0
    with pytest.raises(InternalError):
        space.give_back(1)
    assert SwapSpace(0, torch.device("cpu")).buffer(1) is None


def test_a_system_without_memory_is_no_room_and_counts_nothing() -> None:
    space = SwapSpace(1 << 62, torch.device("cpu"))
    assert space.buffer(1 << 60) is None
    assert space.used_bytes == 0
