"""Prompts that begin alike, with the prefix cache and without it, under eviction, preemption and swapping: the same
tokens in fp32, for every kind of model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.torch_engines import EngineDriver, engine_driver, tiny_model

import engines.torch.replica
from engines.torch.kv.swap import CopyRates, SwapSpace
from memory_manager.kv_spec import KVGroup
from mooring.units import MIB

NUM_TOKENS = 10
KINDS = ("llama", "qwen2", "mistral")  # one full group; a full and a window group; one window group


def prompt(family: int, num_shared: int, own: int, num_own: int) -> list[int]:
    shared = [3 + (13 * family + 7 * i) % 290 for i in range(num_shared)]
    return shared + [5 + (17 * own + 3 * i) % 280 for i in range(num_own)]


prompts = st.builds(
    prompt, st.integers(0, 1), st.sampled_from([16, 33, 48, 80]), st.integers(0, 2), st.integers(1, 24)
)
steps = st.one_of(
    st.tuples(st.just("submit"), prompts, st.integers(0, 1)),
    st.tuples(st.just("submit"), prompts, st.integers(0, 1)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("lease"), st.integers(1, 5)),
)


@lru_cache
def alone(kind: str, token_ids: tuple[int, ...]) -> list[int]:
    with engine_driver(capacity_bytes=24 * MIB) as driver:
        driver.load(tiny_model(kind), max_model_len=128)
        driver.submit(0, token_ids, cache_scope=None, max_tokens=NUM_TOKENS)
        driver.run()
        return driver.tokens[0]


def carry_out(driver: EngineDriver, kind: str, script: list[Any], scope: bytes | None) -> None:
    driver.load(tiny_model(kind), max_model_len=128)
    submitted: list[tuple[int, ...]] = []
    for action, *args in script:
        if action == "submit":
            driver.submit(len(submitted), args[0], priority=args[1], cache_scope=scope, max_tokens=NUM_TOKENS)
            submitted.append(tuple(args[0]))
        elif action == "lease":
            driver.lease_pages(args[0])
        else:
            for _ in range(args[0]):
                driver.step()
        driver.engine.check_integrity()
    driver.lease_pages(5)
    driver.run()
    for sequence_id, token_ids in enumerate(submitted):
        assert driver.tokens[sequence_id] == alone(kind, token_ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(script=st.lists(steps, min_size=4, max_size=20))
def test_no_hit_changes_a_stream(kind: str, script: list[Any]) -> None:
    with engine_driver(
        capacity_bytes=24 * MIB, lease_pages=3, max_running_sequences=6, max_tokens_per_step=40
    ) as driver:
        carry_out(driver, kind, script, b"")


@pytest.fixture
def copying_is_always_quicker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(SwapSpace, "rates", lambda self, _: CopyRates(1.0, 1e12, 1e12))
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", [b"", pytest.param(None, marks=pytest.mark.slow)])
@settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(script=st.lists(steps, min_size=6, max_size=20))
def test_no_swap_changes_a_stream(
    copying_is_always_quicker: None, scope: bytes | None, kind: str, script: list[Any]
) -> None:
    with engine_driver(
        capacity_bytes=24 * MIB, lease_pages=3, max_running_sequences=6, max_tokens_per_step=40
    ) as driver:
        carry_out(driver, kind, script, scope)


@settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(sizes=st.permutations([8, 16]), script=st.lists(steps, min_size=4, max_size=16))
def test_groups_may_have_blocks_of_different_sizes(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], script: list[Any]
) -> None:
    chosen = engines.torch.replica.kv_groups

    def with_these_sizes(*args: Any) -> tuple[KVGroup, ...]:
        return tuple(
            dataclasses.replace(group, block_tokens=size)
            for group, size in zip(chosen(*args), sizes, strict=True)
        )

    with monkeypatch.context() as patch:
        patch.setattr(engines.torch.replica, "kv_groups", with_these_sizes)
        with engine_driver(
            capacity_bytes=24 * MIB, lease_pages=3, max_running_sequences=6, max_tokens_per_step=40
        ) as driver:
            carry_out(driver, "qwen2", script, b"")
