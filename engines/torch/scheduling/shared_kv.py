"""KV of a worker, which the sequences of all its models share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.torch.scheduling.compose import (
    ModelPace,
    PreemptibleSequences,
    claim_order,
    least_urgent,
    most_unpaced_decodes,
)
from engines.torch.scheduling.waiting import PendingSequence
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.policy.kv_forecast import KVDemand, is_turn_of_late, making_way

__all__ = ["Claim", "SharedKV", "Sharer", "SharerDemand"]

_KEPT_OUT_S = 1.0


class Claim(NamedTuple):
    """Claim of one sequence on KV of the worker.

    Attributes:
        order: among all, by ``compose.claim_order``.
        num_bytes: of the pages that it needs now, alone.
    """

    order: tuple[int, int]
    num_bytes: int


class SharerDemand(NamedTuple):
    """KV of the running sequences of one model.

    Attributes:
        slots: int64 [S], of its table.
        shared_bytes: KV that several of them have, and that is counted for none.
    """

    slots: NDArray[np.int64]
    sequences: KVDemand
    shared_bytes: float

    def peak_bytes(self) -> float:
        return self.sequences.peak_bytes() + self.shared_bytes


class Sharer(Protocol):
    """The sequences of one model, as the worker's others have to do with them."""

    replica_id: str

    @property
    def num_running(self) -> int: ...

    @property
    def in_time_priority(self) -> float:
        """The highest priority of those that run, and of the next to be admitted, as far as they are in time;
        ``-inf`` if none is."""
        ...

    def pace(self) -> ModelPace:
        """Demands of those that run on the pace of the worker's steps."""
        ...

    def kv_demand(self) -> SharerDemand: ...

    def claim(self) -> Claim | None:
        """The first claim of those that run, and of the next to be admitted if that is in time and there is a slot
        for it; None if there is neither."""
        ...

    def preemptible(self) -> PreemptibleSequences:
        """The running sequences, with what a preemption of each would cost and free."""
        ...

    def longest_late(self, *, for_others: bool) -> PendingSequence | None:
        """The late sequence that has waited for longest, if there is a slot for it, and late ones of its model have
        not had all that a step gives them.

        Args:
            for_others: only if it may be admitted once other models let go of KV.
        """
        ...

    def preempt(self, slot: int) -> None: ...


class SharedKV:
    """Says who may have how much of the worker's KV, by what all sequences are expected to need.

    Whatever is expected, one sequence of the worker comes first: see ``compose.claim_order``.

    Args:
        pool: has the lease, and each model's guarantee and cap.
        sharers: the models that run.
        preempt: preempts a sequence of a model amid another one's step.
    """

    def __init__(
        self,
        pool: KVPool,
        sharers: Callable[[], Iterable[Sharer]],
        preempt: Callable[[Sharer, int], None] = lambda sharer, slot: sharer.preempt(slot),
    ) -> None:
        self.preempt = preempt
        self._pool = pool
        self._sharers = sharers
        self._num_changes = 0
        self._num_since_late = 0
        self._made_way_at_s = -math.inf

    @property
    def revision(self) -> tuple[int, ...]:
        """Changes with all that may let a sequence in which was refused: one ended, was preempted or became late, the
        lease changed, or a model came or went. That others go on lets nobody in."""
        return self._num_changes, self._pool.limit_bytes, len(list(self._sharers()))

    @property
    def is_shrinking(self) -> bool:
        """Whether the worker has more KV in use than its lease. Then nobody may have a block in a page that is not
        its model's already, and what others give up is for nobody."""
        return self._pool.pages_to_empty > 0

    @property
    def in_time_priority(self) -> float:
        """See ``Sharer``, of all models."""
        return max((each.in_time_priority for each in self._sharers()), default=-math.inf)

    def most_unpaced_decodes(self, decode_s: float, now_s: float) -> float:
        """Decodes that are not paced in a step of one model: see ``compose.most_unpaced_decodes``."""
        paces = [each.pace() for each in self._sharers() if each.num_running]
        return most_unpaced_decodes(paces, decode_s, now_s)

    def note_made_way(self, now_s: float) -> None:
        """Notes that a sequence lost its blocks that is not paced."""
        self._made_way_at_s = now_s

    def keeps_out_unpaced(self, now_s: float) -> bool:
        """Whether one that is not paced made way a moment ago: the next would do so soon, and be computed again."""
        return now_s < self._made_way_at_s + _KEPT_OUT_S

    def note_change(self) -> None:
        self._num_changes += 1

    def may_wait_for_others(self, sharer: Sharer) -> bool:
        """Whether a sequence of a model that was refused may be admitted once others let go of KV. A model with a cap
        holds nobody up."""
        has_cap = self._pool.share_of(sharer.replica_id).cap_bytes is not None
        return not has_cap and any(each.num_running for each in self._sharers())

    def late_in_turn(self, asking: Sharer) -> PendingSequence | None:
        """The late sequence that is to be admitted before all others of its priority or a lower one; None if it is
        no late one's turn.

        Args:
            asking: the model that admits now.
        """
        if not is_turn_of_late(self._num_since_late):
            return None
        late = [
            each
            for sharer in self._sharers()
            if (each := sharer.longest_late(for_others=sharer is not asking)) is not None
        ]
        return min(late, key=lambda each: (-each.request.priority, each.arrival), default=None)

    def note_admitted(self, *, is_late_ones_turn: bool) -> None:
        self._num_since_late = 0 if is_late_ones_turn else self._num_since_late + 1

    def making_way(
        self, sharer: Sharer, newcomer: KVDemand, short_bytes: float, *, takes_place: bool
    ) -> list[tuple[Sharer, int]] | None:
        """Chooses which running sequences are preempted to admit another, by model and slot; None if it has to wait.

        Args:
            sharer: its model.
            newcomer: one row.
            short_bytes: what must come free now.
            takes_place: of others, if it must.
        """
        demands = [(each, each.kv_demand()) for each in self._sharers()]
        own = next(demand for each, demand in demands if each is sharer)
        share = self._pool.share_of(sharer.replica_id)
        with_it = KVDemand.joined((own.sequences, newcomer)).peak_bytes() + own.shared_bytes
        if short_bytes <= 0 and with_it <= share.guarantee_bytes:
            return []
        gone: list[tuple[Sharer, int]] = []
        if share.cap_bytes is not None:
            rows = making_way(
                own.sequences, newcomer, share.cap_bytes - own.shared_bytes, takes_place=takes_place
            )
            if rows is None:
                return None
            gone = [(sharer, slot) for slot in own.slots[rows].tolist()]
            if gone:
                short_bytes -= float(own.sequences.held_bytes[rows].sum())
                own = own._replace(slots=np.delete(own.slots, rows), sequences=own.sequences.without(rows))
                demands = [(each, own if each is sharer else demand) for each, demand in demands]
        rows = making_way(
            KVDemand.joined([demand.sequences for _, demand in demands]),
            newcomer,
            self._capacity_bytes(sharer, demands),
            short_bytes,
            takes_place=takes_place,
        )
        if rows is None:
            return None
        owners = [(each, slot) for each, demand in demands for slot in demand.slots.tolist()]
        return [*gone, *(owners[row] for row in rows.tolist())]

    def first(self) -> tuple[int, int] | None:
        """The first of all claims of the worker that the lease can hold, in ``compose.claim_order``; None if there is
        none."""
        claims = [(each.claim(), self._pool.most_bytes(each.replica_id)) for each in self._sharers()]
        return min(
            (
                claim.order
                for claim, most_bytes in claims
                if claim is not None and claim.num_bytes <= most_bytes
            ),
            default=None,
        )

    def making_way_for_first(
        self, sharer: Sharer, first: tuple[int, int], wanted_bytes: float
    ) -> tuple[Sharer, int] | None:
        """Chooses the running sequence that is preempted next for the worker's first, by model and slot: the least
        urgent of all in whose models more is in use than is guaranteed to them. None if there is none.

        Args:
            sharer: the model of the first. Its own sequences make way whatever is guaranteed to it, and before all
                others if it has a cap.
            wanted_bytes: that the first lacks.
        """
        eligible = [
            each
            for each in self._sharers()
            if each.num_running and (each is sharer or self._pool.exceeds_guarantee(each.replica_id))
        ]
        way = None
        if self._pool.share_of(sharer.replica_id).cap_bytes is not None:
            way = _least_urgent_but([each for each in eligible if each is sharer], first, wanted_bytes)
        return way or _least_urgent_but(eligible, first, wanted_bytes)

    def _capacity_bytes(self, sharer: Sharer, demands: list[tuple[Sharer, SharerDemand]]) -> float:
        """The lease, less what is guaranteed to other models and not needed by those of their sequences that run."""
        capacity_bytes = float(self._pool.limit_bytes - PAGE_BYTES)
        for each, demand in demands:
            capacity_bytes -= demand.shared_bytes
            if each is not sharer:
                guarantee_bytes = self._pool.share_of(each.replica_id).guarantee_bytes
                capacity_bytes -= max(0.0, guarantee_bytes - demand.peak_bytes())
        return capacity_bytes


def _least_urgent_but(
    sharers: Sequence[Sharer], first: tuple[int, int], wanted_bytes: float
) -> tuple[Sharer, int] | None:
    """The least urgent sequence of these models, by model and slot; None if there is none but the first."""
    if not sharers:
        return None
    sequences = PreemptibleSequences.joined([each.preemptible() for each in sharers])
    row = least_urgent(sequences, wanted_bytes)
    if row is None or claim_order(int(sequences.priority[row]), int(sequences.arrival[row])) == first:
        return None
    return sharers[int(sequences.model[row])], int(sequences.slots[row])
