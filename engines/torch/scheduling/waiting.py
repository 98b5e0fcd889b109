"""Sequences that wait for a place in the running table."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.api import FirstToken, SequenceRequest
from engines.torch.kv.prefix import BlockKeys, Prefix
from engines.torch.kv.swap import SwappedKV
from engines.torch.scheduling.compose import AdmissionOrder, admission_order

__all__ = ["PendingSequence", "WaitingQueue"]


@dataclass(slots=True, eq=False)
class PendingSequence:
    """A sequence without a slot: new, or preempted with the output it had.

    Attributes:
        request: as submitted.
        token_ids: int32, prompt and all output so far, that of an earlier life included.
        arrival: order of submission in the engine; kept over preemptions.
        preempted: it ran before.
        deadline_s: for its first token; ``inf`` once it has one.
        is_late: its first token came after its deadline, or can only come after it.
        due_s: when its next token is to come; ``inf`` if that is not promised, or none came since it was submitted.
        kept_until: computed tokens up to which it makes way for nobody, though it is late; of one that is admitted.
        first: to be told with its first token; None once that was given. Its prompt's log-probabilities are those
            found so far, and until a step begins with it ``began_s`` is when it was submitted.
        keys: of its blocks; None if it shares them with nobody.
        swapped: its computed KV in host memory; None if it has to be found or computed.
        found: what it need not compute, claimed; None but while it is admitted.
    """

    request: SequenceRequest
    token_ids: NDArray[np.int32]
    arrival: int
    preempted: bool = False
    deadline_s: float = math.inf
    is_late: bool = False
    due_s: float = math.inf
    kept_until: int = 0
    first: FirstToken | None = None
    keys: BlockKeys | None = None
    swapped: SwappedKV | None = None
    found: Prefix | None = None

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def is_unpaced(self) -> bool:
        """Whether nothing is promised of its further tokens, or no more since it is late."""
        return self.is_late or self.request.tpot_target_s == math.inf

    @property
    def max_prefix_tokens(self) -> int:
        """Tokens that need not be computed if their KV is there: all but the last, which the next one is drawn
        after, and none whose log-probability is wanted and not known yet."""
        if self.first is not None and self.first.prompt_logprobs is not None:
            return len(self.first.prompt_logprobs)
        return len(self.token_ids) - 1

    def order(self) -> AdmissionOrder:
        """The sequence's place in the queue."""
        has_begun = self.preempted or len(self.request.output_ids) > 0
        return admission_order(self.request.priority, self.is_late, has_begun, self.deadline_s, self.arrival)


class WaitingQueue:
    """A priority queue of pending sequences, from which any can be taken by its id.

    The heaps are cleaned lazily: an entry is alive as long as its sequence is the one held under its id, and its
    place is still that one's. One that comes back may meet its own dead entry, equal in all else, so entries carry
    the number of their push.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, PendingSequence] = {}
        self._heap: list[tuple[AdmissionOrder, int, PendingSequence]] = []
        self._deadlines: list[tuple[float, int, PendingSequence]] = []
        self._late: list[tuple[int, int, int, PendingSequence]] = []
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[PendingSequence]:
        """In no particular order."""
        return iter(self._by_id.values())

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._by_id

    def holds(self, sequence: PendingSequence) -> bool:
        """Whether this very sequence waits; one that was preempted since is another."""
        return self._by_id.get(sequence.request.sequence_id) is sequence

    def push(self, sequence: PendingSequence) -> None:
        self._by_id[sequence.request.sequence_id] = sequence
        self._place(sequence)
        if sequence.deadline_s < math.inf and not sequence.is_late:
            heapq.heappush(self._deadlines, (sequence.deadline_s, self._num_pushed, sequence))

    def _place(self, sequence: PendingSequence) -> None:
        self._num_pushed += 1
        heapq.heappush(self._heap, (sequence.order(), self._num_pushed, sequence))
        if sequence.is_late:
            entry = (-sequence.request.priority, sequence.arrival, self._num_pushed, sequence)
            heapq.heappush(self._late, entry)

    def note_late(self, now_s: float) -> None:
        """Puts those whose deadline has passed behind those that are in time."""
        while self.earliest_deadline_s() < now_s:
            _, _, sequence = heapq.heappop(self._deadlines)
            sequence.is_late = True
            self._place(sequence)

    def peek(self) -> PendingSequence | None:
        """The next to be admitted."""
        while self._heap and not (
            self.holds(self._heap[0][2]) and self._heap[0][0] == self._heap[0][2].order()
        ):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def longest_late(self) -> PendingSequence | None:
        """The late one that came first, of the highest priority that has any."""
        while self._late and not self.holds(self._late[0][3]):
            heapq.heappop(self._late)
        return self._late[0][3] if self._late else None

    def remove(self, sequence_id: int) -> PendingSequence:
        """Takes one out, wherever it stands."""
        return self._by_id.pop(sequence_id)

    def earliest_deadline_s(self) -> float:
        """The earliest deadline of all that wait and are in time; ``inf`` if none has one."""
        while self._deadlines and not self.holds(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def drain(self) -> list[PendingSequence]:
        """Takes all out."""
        sequences = list(self._by_id.values())
        self._by_id.clear()
        self._heap.clear()
        self._late.clear()
        self._deadlines.clear()
        return sequences
