"""Turns of models, leases and the queue: pure decisions of the torch engine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.api import SamplingParams, SequenceRequest
from engines.config import TorchEngineConfig
from engines.kv_lease import KVLease
from engines.torch.scheduling.compose import Turn, order_of_turns
from engines.torch.scheduling.waiting import PendingSequence, WaitingQueue
from memory_manager.ports import LeaseStatus
from mooring.errors import ConfigurationError


def test_the_earliest_deadline_goes_first_then_the_least_recent() -> None:
    turns = [
        Turn("late", 9.0, last_step=1, num_turns_waited=0),
        Turn("none-recent", math.inf, last_step=8, num_turns_waited=0),
        Turn("none-old", math.inf, last_step=2, num_turns_waited=3),
        Turn("early", 4.0, last_step=9, num_turns_waited=0),
    ]
    assert order_of_turns(turns, max_turns_waited=5) == ["early", "late", "none-old", "none-recent"]


def test_whoever_waited_long_goes_before_every_deadline() -> None:
    turns = [Turn("urgent", 1.0, 9, 0), Turn("waited", math.inf, 4, 5), Turn("longer", math.inf, 3, 6)]
    assert order_of_turns(turns, max_turns_waited=5) == ["longer", "waited", "urgent"]


def test_no_model_waits_for_longer_than_the_bound() -> None:
    names, max_turns_waited = [f"m{i}" for i in range(6)], 4
    last_step, waited = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for step in range(1, 400):
        turns = [Turn(n, 0.0 if n == "m0" else math.inf, last_step[n], waited[n]) for n in names]
        first = order_of_turns(turns, max_turns_waited)[0]
        for name in names:
            waited[name] += 1
        last_step[first], waited[first] = step, 0
        assert max(waited.values()) <= max_turns_waited + len(names) - 1


def test_a_lease_takes_each_revision_once() -> None:
    lease = KVLease()
    assert lease.accept(100, 1) is None
    assert lease.accept(100, 1) is None
    assert lease.accept(50, 1) is LeaseStatus.CONFLICT
    assert lease.accept(50, 3) is None
    assert lease.accept(100, 2) is LeaseStatus.STALE
    assert (lease.num_bytes, lease.revision) == (50, 3)


def pending(sequence_id: int, *, priority: int = 0, deadline_s: float = math.inf, preempted: bool = False):  # type: ignore[no-untyped-def]
    request = SequenceRequest(sequence_id, "m", [1], SamplingParams(), (), deadline_s, priority)
    return PendingSequence(request, np.array([1], np.int32), sequence_id, preempted, deadline_s)


def test_the_queue_goes_by_priority_then_preemption_then_deadline_then_arrival() -> None:
    queue = WaitingQueue()
    sequences = [
        pending(1),
        pending(2, deadline_s=5.0),
        pending(3, preempted=True),
        pending(4, priority=1),
        pending(5),
        pending(6, deadline_s=3.0),
    ]
    for sequence in sequences:
        queue.push(sequence)
    assert queue.earliest_deadline_s() == 3.0
    queue.remove(6)
    assert queue.earliest_deadline_s() == 5.0
    assert 6 not in queue
    order = []
    while (head := queue.peek()) is not None:
        order.append(queue.remove(head.request.sequence_id).request.sequence_id)
    assert order == [4, 3, 2, 1, 5]
    assert queue.earliest_deadline_s() == math.inf


def test_a_sequence_that_comes_back_is_queued_once() -> None:
    queue = WaitingQueue()
    queue.push(pending(1))
    queue.push(pending(2))
    queue.remove(2)
    queue.push(pending(2, preempted=True))
    assert len(queue) == 2
    head = queue.peek()
    assert head is not None
    assert head.preempted
    assert len(queue.drain()) == 2
    assert queue.peek() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_running_sequences", 0), ("num_copy_threads", 0), ("max_tokens_per_step", 63)],
)
def test_bad_settings_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=name):
        TorchEngineConfig(**{name: value})
