"""What a soak concludes from a status and from memory over time."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.soak_books import count_mismatches, growth_share


def status(owners: dict[str, int], weights_bytes: int = 40, kv_bytes: int = 10) -> dict[str, Any]:
    replica = {"id": "a/0", "lease_bytes": weights_bytes, "stats": {"kv_bytes": kv_bytes}}
    return {
        "devices": [{"budget_bytes": 100, "owners": owners}],
        "deployments": [{"replicas": [replica]}],
    }


def test_books_that_agree_have_no_mismatch() -> None:
    assert count_mismatches(status({"weights:a/0": 40, "kv:torch-0": 60})) == 0
    assert count_mismatches(status({"kv:torch-0": 60}, weights_bytes=0)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        status({"weights:a/0": 40, "kv:torch-0": 61}),  # more than the budget
        status({"weights:a/0": 40, "kv:torch-0": 9}),  # KV beyond its lease
        status({"weights:a/0": 38, "kv:torch-0": 60}),  # other weights than leased
    ],
)
def test_each_contradiction_counts(wrong: dict[str, Any]) -> None:
    assert count_mismatches(wrong) == 1


def test_growth_is_that_of_the_second_half() -> None:
    assert growth_share([10, 50, 100, 100, 100, 100, 110, 110]) == pytest.approx(0.1)
    assert growth_share([100, 100, 100, 100, 100, 100, 90, 90]) == 0
    assert growth_share([100]) == 0
