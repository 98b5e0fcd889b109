"""Block tables of the running sequences of one model, kept full from the KV pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.torch.kv.prefix import BlockKeys, Prefix, first_seen_column, longest_prefix_tokens
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv_spec import KVGroup

__all__ = ["BlockTables"]

_NONE = np.empty(0, np.int64)
_NEVER = np.iinfo(np.int64).max


class BlockTables:
    """For each KV group, one row of block offsets per slot.

    Row s of group g holds live blocks in columns ``[num_freed[g, s], num_blocks[g, s])`` and 0, the null
    block, everywhere else: ahead because nothing is there yet, behind because a window group has given
    its blocks back. Column c holds positions ``c * block_tokens`` and on.

    A full group is given blocks for all known tokens when a sequence is admitted, so that a prefill once
    begun needs nothing more; a window group only for the next chunk, since most of them will be gone again.

    Blocks may be in several rows: those that ``store`` was told of are found by sequences that begin alike.

    Attributes:
        groups: the model's.
        tables: int64 [C, max_blocks_g] per group, offsets in granules.
    """

    def __init__(
        self, cache: BlockStore, model_id: str, groups: Sequence[KVGroup], num_slots: int, max_model_len: int
    ) -> None:
        self.groups = tuple(groups)
        self.tables = tuple(
            np.zeros((num_slots, -(-max_model_len // group.block_tokens)), np.int64) for group in groups
        )
        self._cache = cache
        self._model_id = model_id
        self._num_blocks = np.zeros((len(self.groups), num_slots), np.int64)
        self._num_freed = np.zeros((len(self.groups), num_slots), np.int64)
        self._num_stored = np.zeros((len(self.groups), num_slots), np.int64)
        self._next_stored_at = np.full(num_slots, _NEVER)  # computed tokens with which another block is full

    def slots(self) -> set[int]:
        """Slots whose rows hold blocks."""
        return set(np.flatnonzero((self._num_blocks > self._num_freed).any(axis=0)).tolist())

    @property
    def live_bytes(self) -> int:
        """Bytes of all blocks in the tables, each counted once."""
        return sum(
            len(np.unique(table[table != 0])) * group.block_bytes
            for table, group in zip(self.tables, self.groups, strict=True)
        )

    def unfilled_bytes(self, slots: NDArray[np.int64], num_computed: NDArray[np.int64]) -> int:
        """Bytes in blocks of these sequences for tokens that are not computed yet. Both [S]."""
        return sum(
            int(np.maximum(counts[slots] * group.block_tokens - num_computed, 0).sum())
            * group.bytes_per_token
            for counts, group in zip(self._num_blocks, self.groups, strict=True)
        )

    # Admission -------------------------------------------------------------------------------------

    def find(self, keys: BlockKeys, token_ids: NDArray[np.int32], max_tokens: int) -> Prefix:
        """The longest prefix of at most ``max_tokens`` that is stored."""
        found = [
            self._cache.find(self._model_id, g, keys.keys(g, token_ids, 0, max_tokens // group.block_tokens))
            for g, group in enumerate(self.groups)
        ]
        num_tokens = longest_prefix_tokens(self.groups, [offsets != 0 for offsets in found], max_tokens)
        first = tuple(first_seen_column(group, num_tokens) for group in self.groups)
        ends = [num_tokens // group.block_tokens for group in self.groups]
        kept = [offsets[start:end] for offsets, start, end in zip(found, first, ends, strict=True)]
        return Prefix(num_tokens, first, kept)

    def find_with_gaps(
        self,
        keys: BlockKeys | None,
        token_ids: NDArray[np.int32],
        num_tokens: int,
        first_columns: tuple[int, ...],
    ) -> Prefix:
        """A prefix of ``num_tokens``, as far as it is stored."""
        offsets = []
        for g, (group, first) in enumerate(zip(self.groups, first_columns, strict=True)):
            blocks = np.zeros(-(-num_tokens // group.block_tokens) - first, np.int64)
            num_full = num_tokens // group.block_tokens - first
            if keys is not None and num_full > 0:
                wanted = keys.keys(g, token_ids, first, first + num_full)
                blocks[:num_full] = self._cache.find(self._model_id, g, wanted)
            offsets.append(blocks)
        return Prefix(num_tokens, first_columns, offsets, [np.flatnonzero(each == 0) for each in offsets])

    def claim(self, prefix: Prefix) -> None:
        """Keeps the prefix's blocks from being given up."""
        for g, offsets in enumerate(prefix.offsets):
            self._cache.use(self._model_id, g, offsets[offsets != 0])

    def unclaim(self, prefix: Prefix) -> None:
        """Takes ``claim`` back, and what ``prepare`` took for gaps."""
        for g, offsets in enumerate(prefix.offsets):
            self._cache.free(self._model_id, g, offsets[offsets != 0])

    def pages_short(self, num_blocks: Sequence[int]) -> int:
        """Pages that others must let go of before there is room for so many more blocks of each group."""
        return self._cache.pages_short(self._model_id, num_blocks)

    def is_stored(self, key: bytes) -> bool:
        """Whether a block of the first group is stored under this key."""
        return self._cache.is_stored(self._model_id, 0, key)

    def prepare(self, prefix: Prefix, num_tokens: int, num_after_chunk: int) -> bool:
        """Makes room for a new sequence that lacks no pages, and gives the prefix's gaps their blocks. False
        if there is none after all; the prefix is then still claimed."""
        if not self._cache.make_room(self._model_id, self.wanted(prefix, num_tokens, num_after_chunk)):
            return False
        for g, offsets in enumerate(prefix.offsets):
            if num_missing := prefix.num_missing(g):
                taken = self._cache.allocate(self._model_id, g, num_missing)
                if taken is None:  # the arena itself ran out
                    return False
                offsets[offsets == 0] = taken
        return True

    def adopt(self, slot: int, prefix: Prefix, *, shares: bool) -> None:
        """Begins an empty row with a claimed prefix that has no gaps left.

        Args:
            shares: full blocks of this row are to be stored.
        """
        for g, (first, offsets) in enumerate(zip(prefix.first_columns, prefix.offsets, strict=True)):
            self.tables[g][slot, first : first + len(offsets)] = offsets
            self._num_freed[g, slot] = first
            self._num_blocks[g, slot] = first + len(offsets)
            self._num_stored[g, slot] = first
        self._next_stored_at[slot] = 0 if shares else _NEVER

    def wanted(
        self, prefix: Prefix, num_tokens: int, num_after_chunk: int, margin_blocks: int = 0
    ) -> list[int]:
        """Blocks of each group that a new sequence needs, beside those to spare.

        Args:
            prefix: what it need not compute, claimed.
            num_tokens: known ones.
            num_after_chunk: of them in the cache after the first chunk.
            margin_blocks: to spare in each group.
        """
        return [
            margin_blocks
            + -(-(num_after_chunk if group.kind == "window" else num_tokens) // group.block_tokens)
            - first
            - len(offsets)
            + prefix.num_missing(g)
            for g, (group, first, offsets) in enumerate(
                zip(self.groups, prefix.first_columns, prefix.offsets, strict=True)
            )
        ]

    # Running ---------------------------------------------------------------------------------------

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
        missing = self.missing(slots, num_known, num_after_step)
        wanted = [int(counts.sum()) for counts in missing]
        if not any(wanted):
            return True
        if not self._cache.make_room(self._model_id, wanted):
            return False
        taken: list[NDArray[np.int64]] = []
        for g, num_blocks in enumerate(wanted):
            offsets = self._cache.allocate(self._model_id, g, num_blocks) if num_blocks else _NONE
            if offsets is None:  # the arena itself ran out: give back what this call took
                for given, back in enumerate(taken):
                    self._free(given, back)
                return False
            taken.append(offsets)
        for g, offsets in enumerate(taken):
            self._append(g, slots, missing[g], offsets)
        return True

    def missing(
        self, slots: NDArray[np.int64], num_known: NDArray[np.int64], num_after_step: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Blocks of each group that ``extend`` would give each of these sequences, int64 [S]."""
        return [
            np.maximum(
                -(-(num_after_step if group.kind == "window" else num_known) // group.block_tokens)
                - self._num_blocks[g, slots],
                0,
            )
            for g, group in enumerate(self.groups)
        ]

    def _append(
        self, g: int, slots: NDArray[np.int64], counts: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> None:
        """Hands ``counts[i]`` of the offsets to row ``slots[i]``, in order."""
        rows, columns = _spans(slots, self._num_blocks[g, slots], counts)
        self.tables[g][rows, columns] = offsets
        self._num_blocks[g, slots] += counts

    def with_full_blocks(
        self, slots: NDArray[np.int64], num_computed: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Picks the slots that have blocks for ``store``."""
        return slots[num_computed >= self._next_stored_at[slots]]

    def store(self, slot: int, num_computed: int, keys: BlockKeys, token_ids: NDArray[np.int32]) -> None:
        """Lets other sequences find the blocks that are full by now.

        Args:
            num_computed: tokens of the sequence in the cache; what its window has left behind is still there.
            token_ids: int32, at least so many.
        """
        for g, group in enumerate(self.groups):
            first = int(max(self._num_stored[g, slot], self._num_freed[g, slot]))
            end = num_computed // group.block_tokens
            if end > first:
                offsets = self.tables[g][slot, first:end]
                self._cache.store(self._model_id, g, keys.keys(g, token_ids, first, end), offsets)
                self._num_stored[g, slot] = end
        self._next_stored_at[slot] = min(
            (num_computed // group.block_tokens + 1) * group.block_tokens for group in self.groups
        )

    def moved(self, g: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        """Blocks of a group, int64 [n] each, are elsewhere now."""
        order = sources.argsort()
        table = self.tables[g][:, : self._num_blocks[g].max()]
        rows, columns = np.nonzero(np.isin(table, sources))
        old = table[rows, columns]
        table[rows, columns] = destinations[order][np.searchsorted(sources[order], old)]

    def num_unshared_tokens(
        self, slots: NDArray[np.int64], num_computed: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Number of computed tokens of these sequences in blocks that no other one uses, by the blocks of the first
        group. All [S]."""
        shared = self._cache.shared(self._model_id, 0)
        if not len(shared):
            return num_computed
        held = self.tables[0][slots, : self._num_blocks[0].max()]
        num_shared: NDArray[np.int64] = np.isin(held, shared).sum(axis=1)
        return num_computed - num_shared * self.groups[0].block_tokens

    def unshared_bytes(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bytes of the blocks of these sequences that no other one uses, float64 [S]."""
        num_bytes = np.zeros(len(slots))
        for g, group in enumerate(self.groups):
            num_blocks = self._num_blocks[g, slots] - self._num_freed[g, slots]
            shared = self._cache.shared(self._model_id, g)
            if len(shared):
                held = self.tables[g][slots, : self._num_blocks[g].max()]
                num_blocks = num_blocks - np.isin(held, shared).sum(axis=1)
            num_bytes += num_blocks * group.block_bytes
        return num_bytes

    def num_shared_tokens(self, prefix: Prefix | None = None) -> int:
        """Number of tokens in blocks that several sequences use, each counted once; of a claimed prefix, if one is
        given. By the blocks of the first group."""
        shared = self._cache.shared(self._model_id, 0)
        num_blocks = len(shared) if prefix is None else int(np.isin(prefix.offsets[0], shared).sum())
        return num_blocks * self.groups[0].block_tokens

    def computed_blocks(self, slot: int, num_computed: int) -> Prefix:
        """The blocks of a row that hold anything."""
        first = tuple(self._num_freed[:, slot].tolist())
        offsets = [
            table[slot, start : -(-num_computed // group.block_tokens)].copy()
            for table, group, start in zip(self.tables, self.groups, first, strict=True)
        ]
        return Prefix(num_computed, first, offsets)

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
        self._next_stored_at[slots] = _NEVER

    def _free(self, g: int, offsets: NDArray[np.int64]) -> None:
        if len(offsets):
            self._cache.free(self._model_id, g, offsets)

    def check_integrity(self, live_slots: NDArray[np.int64]) -> None:
        """Each block is in as many rows as it has users, and slots without a sequence hold none.

        Raises:
            AssertionError: a bug of ours, with the group at fault.
        """
        for g, table in enumerate(self.tables):
            held, num_rows = np.unique(table[table != 0], return_counts=True)
            if (self._cache.num_users(self._model_id, g, held) != num_rows).any():
                raise AssertionError(f"group {g}: a block has other users than rows that hold it")
            if any(len(np.unique(row)) != len(row) for row in (row[row != 0] for row in table[live_slots])):
                raise AssertionError(f"group {g}: a block is held twice in a row")
            empty = np.delete(table, live_slots, axis=0)
            if empty.any():
                raise AssertionError(f"group {g}: a slot without a sequence holds blocks")
            expected = int((self._num_blocks[g] - self._num_freed[g]).sum())
            if num_rows.sum() != expected:
                raise AssertionError(f"group {g}: {num_rows.sum()} blocks in the table, {expected} counted")


def _spans(
    rows: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index pairs of the ``counts[i]`` columns from ``first[i]`` on of ``rows[i]``, row after row."""
    starts = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return np.repeat(rows, counts), np.repeat(first, counts) + within
