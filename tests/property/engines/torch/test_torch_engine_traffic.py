"""Random submissions, cancels, leases, sleeps and wakes: the books balance, no output changes and none is lost.

A smaller lease is applied in the smallest pieces; whatever comes between them, no more KV is held than before it or
than it allows, and in the end no more than it allows.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from support.torch_engines import EngineDriver, engine_driver, tiny_model

from engines.api import FinishReason
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import LeaseStatus

REPLICAS = {"llama": ("llama", 0), "qwen2": ("qwen2", 0)}
PROMPTS = {i: [3 + (7 * i + 11 * j) % 290 for j in range(1 + 17 * i)] for i in range(6)}
NUM_TOKENS = 12

actions = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(sorted(REPLICAS)), st.integers(0, 5), st.integers(0, 2)),
    st.tuples(st.just("submit"), st.sampled_from(sorted(REPLICAS)), st.integers(0, 5), st.integers(0, 2)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("lease"), st.integers(0, 6)),
    st.tuples(st.just("sleep"), st.sampled_from(sorted(REPLICAS))),
    st.tuples(st.just("wake"), st.sampled_from(sorted(REPLICAS))),
    st.tuples(st.just("step"), st.integers(1, 10)),
)


class _Traffic:
    """Carries out actions and remembers which prompt each sequence has."""

    def __init__(self, driver: EngineDriver) -> None:
        self.driver = driver
        self._most_bytes = driver.engine.stats().kv_lease_bytes
        self.submitted: dict[int, tuple[str, int, int]] = {}
        self.weights_bytes = {
            replica_id: driver.load(tiny_model(*model), replica_id, max_model_len=128)
            for replica_id, model in REPLICAS.items()
        }

    def act(self, action: tuple) -> None:  # type: ignore[type-arg]
        kind, *args = action
        getattr(self, kind)(*args)
        self.check()

    def submit(self, replica_id: str, prompt: int, priority: int) -> None:
        sequence_id = len(self.submitted)
        self.submitted[sequence_id] = (replica_id, prompt, priority)
        sampled = {"temperature": 1.0, "seed": prompt, "presence_penalty": 0.5} if prompt % 2 else {}
        edited = {"logit_bias": ((9, 3.0),), "bad_words_ids": ((8,), (9, 9))} if prompt % 3 else {}
        scored = {"prompt_logprobs": 1} if prompt > 3 else {}
        self.driver.submit(
            sequence_id,
            PROMPTS[prompt],
            replica_id,
            priority=priority,
            max_tokens=NUM_TOKENS,
            **sampled,
            **edited,
            **scored,
        )

    def cancel(self, sequence_id: int) -> None:
        self.driver.engine.cancel([sequence_id])

    def lease(self, num_pages: int) -> None:
        before = self._kv_bytes()
        status = self.driver.lease_pages(num_pages)
        self._most_bytes = max(before, (num_pages + 1) * PAGE_BYTES)
        assert (status is LeaseStatus.DEFERRED) == (self._kv_bytes() > (num_pages + 1) * PAGE_BYTES)

    def keep_lease(self) -> None:
        """Steps until the lease is applied."""
        lease_bytes = self.driver.engine.stats().kv_lease_bytes
        if self._kv_bytes() > lease_bytes:
            assert self.driver.shrink() <= 100
        assert self._kv_bytes() <= lease_bytes

    def check(self) -> None:
        """No more is held than when the lease was told, and what was given up does not come back."""
        self.driver.engine.check_integrity()
        kv_bytes = self._kv_bytes()
        assert kv_bytes <= self._most_bytes
        self._most_bytes = max(kv_bytes, self.driver.engine.stats().kv_lease_bytes)

    def _kv_bytes(self) -> int:
        return self.driver.engine.stats().kv_bytes

    def sleep(self, replica_id: str) -> None:
        self.driver.engine.sleep(replica_id)

    def wake(self, replica_id: str) -> None:
        self.driver.engine.wake(replica_id, self.weights_bytes[replica_id])

    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.driver.step()
            self.check()


@lru_cache
def alone(replica_id: str, prompt: int) -> list[int]:
    with engine_driver() as driver:
        traffic = _Traffic(driver)
        traffic.submit(replica_id, prompt, 0)
        driver.run()
        return driver.tokens[0]


@settings(max_examples=25)
@given(st.lists(actions, min_size=5, max_size=40))
def test_traffic_changes_no_output_and_leaks_nothing(script: list[tuple]) -> None:  # type: ignore[type-arg]
    with engine_driver(lease_pages=4, max_running_sequences=6, max_tokens_per_step=24) as driver:
        traffic = _Traffic(driver)
        driver.engine._shrinking._clock = count().__next__  # a turn is the least that it can be
        for action in script:
            traffic.act(action)
        traffic.keep_lease()
        traffic.lease(6)
        for replica_id in REPLICAS:
            traffic.wake(replica_id)
        driver.run()
        assert set(driver.finished) == set(traffic.submitted)
        for sequence_id, (replica_id, prompt, _) in traffic.submitted.items():
            end, found = driver.finished[sequence_id], driver.tokens[sequence_id]
            if end.reason is FinishReason.LENGTH:
                assert len(found) == NUM_TOKENS
            elif end.reason is not FinishReason.STOP:
                assert end.reason is FinishReason.CANCELLED
            assert found == alone(replica_id, prompt)[: len(found)]
            scored = driver.prompt_logprobs.get(sequence_id)
            assert (scored is not None) == (prompt > 3 and bool(found))
            assert scored is None or len(scored) == len(PROMPTS[prompt]) - 1
