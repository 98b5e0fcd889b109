"""Block tables of the running sequences of one model, kept full from the KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_manager.kv_spec import KVGroup

__all__ = ["BlockSource", "BlockTables"]


class BlockSource(Protocol):
    """What is needed of the KV pool (``memory_manager.kv_pool.KVPool``)."""

    def can_allocate(self, model_id: str, num_blocks: Sequence[int]) -> bool: ...

    def allocate(self, model_id: str, group: int, num_blocks: int) -> NDArray[np.int64] | None: ...

    def free(self, model_id: str, group: int, offsets: NDArray[np.int64]) -> None: ...


class BlockTables:
    """For each KV group, one row of block offsets per slot.

    Row s of group g holds live blocks in columns ``[num_freed[g, s], num_blocks[g, s])`` and 0, the null
    block, everywhere else: ahead because nothing is there yet, behind because a window group has given
    its blocks back. Column c holds positions ``c * block_tokens`` and on.

    A full group is given blocks for all known tokens when a sequence is admitted, so that a prefill once
    begun needs nothing more; a window group only for the next chunk, since most of them will be gone again.

    Attributes:
        groups: the model's.
        tables: int64 [C, max_blocks_g] per group, offsets in granules.
    """

    def __init__(
        self, pool: BlockSource, model_id: str, groups: Sequence[KVGroup], num_slots: int, max_model_len: int
    ) -> None:
        self.groups = tuple(groups)
        self.tables = tuple(
            np.zeros((num_slots, -(-max_model_len // group.block_tokens)), np.int64) for group in groups
        )
        self._pool = pool
        self._model_id = model_id
        self._num_blocks = np.zeros((len(self.groups), num_slots), np.int64)
        self._num_freed = np.zeros((len(self.groups), num_slots), np.int64)

    @property
    def live_bytes(self) -> int:
        """Of all blocks in the tables."""
        num_live = (self._num_blocks - self._num_freed).sum(axis=1)
        return sum(int(n) * group.block_bytes for n, group in zip(num_live, self.groups, strict=True))

    def can_admit(self, num_tokens: int, chunk_tokens: int, margin_blocks: int) -> bool:
        """Whether there is room for a new sequence of ``num_tokens`` known tokens, of which the first chunk
        has ``chunk_tokens``, with ``margin_blocks`` to spare in each group."""
        return self._pool.can_allocate(
            self._model_id,
            [
                -(-(chunk_tokens if group.kind == "window" else num_tokens) // group.block_tokens)
                + margin_blocks
                for group in self.groups
            ],
        )

    def extend(
        self, slots: NDArray[np.int64], num_known: NDArray[np.int64], num_after_step: NDArray[np.int64]
    ) -> bool:
        """Gives these sequences the blocks that the coming step writes to. False, and nothing changed, if
        there is no room for all of them now.

        Args:
            slots: [S].
            num_known: [S] known tokens.
            num_after_step: [S] tokens in the cache once the step has written.
        """
        missing = [
            np.maximum(
                -(-(num_after_step if group.kind == "window" else num_known) // group.block_tokens)
                - self._num_blocks[g, slots],
                0,
            )
            for g, group in enumerate(self.groups)
        ]
        wanted = [int(counts.sum()) for counts in missing]
        if not any(wanted):
            return True
        if not self._pool.can_allocate(self._model_id, wanted):
            return False
        taken: list[NDArray[np.int64]] = []
        for g, num_blocks in enumerate(wanted):
            offsets = self._pool.allocate(self._model_id, g, num_blocks) if num_blocks else _NONE
            if offsets is None:  # the arena itself ran out: give back what this call took
                for given, back in enumerate(taken):
                    self._free(given, back)
                return False
            taken.append(offsets)
        for g, offsets in enumerate(taken):
            self._append(g, slots, missing[g], offsets)
        return True

    def _append(
        self, g: int, slots: NDArray[np.int64], counts: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> None:
        """Hands ``counts[i]`` of the offsets to row ``slots[i]``, in order."""
        rows, columns = _spans(slots, self._num_blocks[g, slots], counts)
        self.tables[g][rows, columns] = offsets
        self._num_blocks[g, slots] += counts

    def free_behind_windows(self, slots: NDArray[np.int64], num_computed: NDArray[np.int64]) -> None:
        """Gives back the blocks that no later token of these sequences can see.

        Args:
            slots: [S].
            num_computed: [S] tokens in the cache; the next token stands at this position and sees itself
                and the ``window_tokens - 1`` before it.
        """
        for g, group in enumerate(self.groups):
            if group.window_tokens is None:
                continue
            first_seen = np.maximum(num_computed - group.window_tokens + 1, 0)
            counts = first_seen // group.block_tokens - self._num_freed[g, slots]
            if (counts > 0).any():
                counts = np.maximum(counts, 0)
                rows, columns = _spans(slots, self._num_freed[g, slots], counts)
                self._free(g, self.tables[g][rows, columns])
                self.tables[g][rows, columns] = 0
                self._num_freed[g, slots] += counts

    def release(self, slots: NDArray[np.int64]) -> None:
        """Gives back all blocks of these slots."""
        for g in range(len(self.groups)):
            first = self._num_freed[g, slots]
            rows, columns = _spans(slots, first, self._num_blocks[g, slots] - first)
            self._free(g, self.tables[g][rows, columns])
            self.tables[g][rows, columns] = 0
            self._num_blocks[g, slots] = 0
            self._num_freed[g, slots] = 0

    def _free(self, g: int, offsets: NDArray[np.int64]) -> None:
        if len(offsets):
            self._pool.free(self._model_id, g, offsets)

    def check_integrity(self, live_slots: NDArray[np.int64]) -> None:
        """No block is held twice, and slots without a sequence hold none.

        Raises:
            AssertionError: a bug of ours, with the group at fault.
        """
        for g, table in enumerate(self.tables):
            held = table[table != 0]
            if len(np.unique(held)) != len(held):
                raise AssertionError(f"group {g}: a block is held twice")
            empty = np.delete(table, live_slots, axis=0)
            if empty.any():
                raise AssertionError(f"group {g}: a slot without a sequence holds blocks")
            expected = int((self._num_blocks[g] - self._num_freed[g]).sum())
            if len(held) != expected:
                raise AssertionError(f"group {g}: {len(held)} blocks in the table, {expected} counted")


_NONE = np.empty(0, np.int64)


def _spans(
    rows: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index pairs of the ``counts[i]`` columns from ``first[i]`` on of ``rows[i]``, row after row."""
    starts = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return np.repeat(rows, counts), np.repeat(first, counts) + within
