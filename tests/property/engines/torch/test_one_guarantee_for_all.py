"""KV is kept for one sequence of full length, and shared by all models of a worker: the real runners, pool and cache
over models that compute nothing."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bare_runner import MAX_LEN, PAGE_TOKENS, BareModel, BareWorker, worker_without_models

from engines.api import FinishReason, SamplingParams, SequenceRequest
from engines.torch.scheduling.shared_kv import Sharer

MOST_SEQUENCES = 12

models = st.builds(
    BareModel,
    max_model_len=st.sampled_from([PAGE_TOKENS, MAX_LEN, 3 * PAGE_TOKENS, 4 * PAGE_TOKENS]),
    guarantee_pages=st.sampled_from([0, 0, 0, 1, 2, 5]),
)


class Arrival(NamedTuple):
    """A sequence to come: ``after_steps`` from the one before; lengths in parts of the longest of its model."""

    model: int
    after_steps: int
    prompt_part: float
    output_part: float
    priority: int
    shares: bool


arrivals = st.builds(
    Arrival,
    st.integers(0, 3),
    st.integers(0, 6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0, 0, 0, 1]),
    st.booleans(),
)


def longest_pages(model: BareModel) -> int:
    return -(-model.max_model_len // PAGE_TOKENS)


def floor_pages(asked: list[BareModel]) -> int:
    """Pages of the smallest lease that these models may have."""
    own = sum(each.guarantee_pages for each in asked)
    return own + max(max(0, longest_pages(each) - each.guarantee_pages) for each in asked)


class World:
    """The sequences that came to a worker, and what must hold of them.

    Attributes:
        orders: of the sequences that have not ended, by number: the least is the first.
        models: each sequence's.
        pages: that each will fill.
        num_waits: steps of the model of the first that it was not in.
        fits_in_a_step: whether all that come could be computed at once, and none waits for what another computes.
    """

    def __init__(self, asked: list[BareModel], *, fits_in_a_step: bool) -> None:
        self.asked = asked
        self.fits_in_a_step = fits_in_a_step
        self.orders: dict[int, tuple[int, int]] = {}
        self.models: dict[int, str] = {}
        self.pages: dict[int, int] = {}
        self.num_waits = 0
        self.worker: BareWorker

    @property
    def first(self) -> int:
        return min(self.orders, key=self.orders.__getitem__)

    def submit(self, arrival: Arrival) -> None:
        number, index = len(self.models) + 1, arrival.model % len(self.asked)
        max_model_len = self.asked[index].max_model_len
        num_prompt = 1 + int(arrival.prompt_part * (max_model_len - 2))
        max_tokens = 1 + int(arrival.output_part * (max_model_len - num_prompt - 1))
        self.models[number] = str(index)
        self.orders[number] = (-arrival.priority, number)
        self.pages[number] = -(-(num_prompt + max_tokens) // PAGE_TOKENS)
        self.worker.runners[str(index)].submit(
            SequenceRequest(
                number,
                str(index),
                ((np.arange(num_prompt) + (0 if arrival.shares else number)) % 8).astype(np.int32),
                SamplingParams(temperature=0.0, max_tokens=max_tokens),
                priority=arrival.priority,
                cache_scope=b"" if arrival.shares else None,
            ),
            number,
        )

    def step(self, order: list[str]) -> str:
        """One step of the first of these models that can run; returns the model."""
        for name in order:
            runner = self.worker.runners[name]
            first, was_running = self.first, self.is_running(self.first)
            launched = runner.launch()
            assert self.is_running(first) or not was_running, "the first is preempted for nobody"
            self.check_waits(name, first)
            if launched:
                for end in runner.finish(0).finished:
                    assert end.reason is FinishReason.LENGTH
                    del self.orders[end.sequence_id]
                self.worker.check()
                return name
        raise AssertionError("somebody can always go on")

    def is_running(self, number: int) -> bool:
        return number in self.worker.runners[self.models[number]]._table

    def check_waits(self, name: str, first: int) -> None:
        """A model has had its turn: its sequences wait neither in spite of what is guaranteed to it, nor as the
        worker's first (but for those of its own model that must make way, one a step)."""
        if name == self.models[first]:
            self.num_waits = 0 if self.is_running(first) else self.num_waits + 1
            assert self.num_waits <= MOST_SEQUENCES
        own = [number for number in self.orders if self.models[number] == name]
        if self.fits_in_a_step and (
            sum(self.pages[number] + 1 for number in own) <= self.asked[int(name)].guarantee_pages
        ):
            assert all(map(self.is_running, own))

    def preempt(self, sharer: Sharer, slot: int) -> None:
        """Preempts a sequence for another model's."""
        share = self.worker.pool.share_of(sharer.replica_id)
        assert self.worker.pool.usage(sharer.replica_id).held_bytes > share.guarantee_bytes
        sharer.preempt(slot)


@settings(max_examples=30)
@given(
    asked=st.lists(models, min_size=1, max_size=4),
    coming=st.lists(arrivals, min_size=1, max_size=MOST_SEQUENCES),
    extra_pages=st.integers(0, 3),
    max_tokens_per_step=st.sampled_from([16, MOST_SEQUENCES * 4 * PAGE_TOKENS]),
)
def test_with_the_least_lease_all_end_and_the_first_never_waits(
    asked: list[BareModel], coming: list[Arrival], extra_pages: int, max_tokens_per_step: int
) -> None:
    fits_in_a_step = max_tokens_per_step > 16 and not any(each.shares for each in coming)
    world = World(asked, fits_in_a_step=fits_in_a_step)
    num_pages = floor_pages(asked) + extra_pages
    with worker_without_models(
        asked,
        num_pages,
        world.preempt,
        max_tokens_per_step=max_tokens_per_step,
        max_running_sequences=MOST_SEQUENCES,
    ) as world.worker:
        names = list(world.worker.runners)
        still_coming, wait_steps, num_steps = deque(coming), 0, 0
        while still_coming or world.orders:
            while still_coming and (wait_steps >= still_coming[0].after_steps or not world.orders):
                world.submit(still_coming.popleft())
                wait_steps = 0
            stepped = world.step([name for name in names if world.worker.runners[name].has_sequences])
            names.remove(stepped)
            names.append(stepped)
            wait_steps += 1
            num_steps += 1
            # Each may take as long as its tokens once it is the first, of each model in turn.
            assert num_steps <= len(coming) * len(asked) * (4 * PAGE_TOKENS + MOST_SEQUENCES)
