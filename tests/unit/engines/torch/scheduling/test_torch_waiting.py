"""The queue of sequences that wait for a place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.api import SamplingParams, SequenceRequest
from engines.torch.scheduling.waiting import PendingSequence, WaitingQueue


def pending(sequence_id: int, arrival: int, deadline_s: float = 5.0) -> PendingSequence:
    request = SequenceRequest(sequence_id, "m", [1], SamplingParams())
    return PendingSequence(request, np.array([1], np.int32), arrival, deadline_s=deadline_s)


def test_one_that_comes_back_meets_its_own_dead_entries() -> None:
    queue = WaitingQueue()
    first = replace(pending(1, arrival=1), preempted=True)
    queue.push(pending(2, arrival=2, deadline_s=9.0))
    for again in (first, replace(first), replace(first)):
        queue.push(again)
        assert queue.peek() is again
        assert queue.earliest_deadline_s() == 5.0
        queue.remove(1)  # admitted; nobody looks into the queue before it is preempted again
    assert queue.earliest_deadline_s() == 9.0
    assert [each.request.sequence_id for each in queue.drain()] == [2]


def test_late_ones_wait_behind_those_that_are_in_time() -> None:
    queue = WaitingQueue()
    for number, deadline_s in ((1, 3.0), (2, 4.0), (3, 9.0), (4, 5.0)):
        queue.push(pending(number, arrival=number, deadline_s=deadline_s))
    queue.note_late(4.5)
    assert queue.earliest_deadline_s() == 5.0
    again = queue.remove(2)
    queue.push(again)
    order = []
    while (head := queue.peek()) is not None:
        order.append(queue.remove(head.request.sequence_id).request.sequence_id)
    assert order == [4, 3, 1, 2]
