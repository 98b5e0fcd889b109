"""Real servers whose host memory holds fewer copies than their device holds models: all are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.host_tier import measure_host_tier
from benchmarks.random_models import TINY_SHAPE

pytestmark = pytest.mark.integration


@pytest.mark.slow
@pytest.mark.parametrize("cpu_wake", ["copy", "remap"])
def test_all_models_serve_whatever_the_host_tier_holds(cpu_wake: str, tmp_path: Path) -> None:
    rounds = 2
    found = measure_host_tier(
        tmp_path, TINY_SHAPE, rounds, max_model_len=256, num_threads=1, cpu_wake=cpu_wake
    )
    assert found.failures == ()
    assert found.num_requests == 2 * rounds * (3 + 2 + 2 + 3)
    # The large model leaves no copy at any of its loads: it is asked three times a round.
    assert found.num_from_file >= 3 * rounds
    if cpu_wake == "remap":
        assert found.num_dropped == 0, "the copies are the resident weights"
    else:
        # On each server, when the models are asked one after another and there is a copy less than residents want.
        assert found.num_dropped >= 2 * rounds
