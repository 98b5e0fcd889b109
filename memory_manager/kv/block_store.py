"""Blocks that several sequences read at once, and blocks that are kept though nobody reads them now.

A block that is full and computed may be stored under a key, which says everything that its contents depend on
(the engine makes the keys; here they are bytes). From then on any number of sequences may use the block at
once. When the last of them is gone, the block stays, idle, until it is found again or given up. Nobody writes
to a stored block.

Idle blocks are memory at hand. They are given up when somebody needs room, before any sequence is preempted:
whole pages first, of all models' pages those that have been idle for the longest, since any model may have a
page; then, if no page can be had, single blocks of the very group that is short. A model's idle blocks within
its own guarantee are given up for that model alone, because no other may have the pages.

If all idle blocks together would not be enough, the blocks of other models are moved out of their sparsest
pages: a copy of at most a page for each page that comes free, which is cheaper than to preempt a sequence.

If that is not enough either, sequences of parked models, which nobody computes, give up theirs.

Threads: the store belongs to the step thread alone, like the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import KVGroup
from mooring.errors import InternalError

__all__ = ["BlockStore", "MoveBlocks"]

MoveBlocks = Callable[[int, NDArray[np.int64], NDArray[np.int64]], None]
"""Copies the contents of blocks to other blocks of the group, and makes all users of the old blocks use the
new ones. Called with the group, the old and the new granule offsets, int64 [n] each."""


class _StoredBlocks:
    """The stored blocks of one KV group of one model, by granule offset.

    Attributes:
        offset_of: offset of the block stored under a key.
        key_of: the inverse of ``offset_of``.
        num_users: users of the block at an offset; a block with 0 users is idle.
        shared: offsets of the blocks that have several users.
        idle: offsets of the idle blocks, the longest idle first.
    """

    def __init__(self) -> None:
        self.offset_of: dict[bytes, int] = {}
        self.key_of: dict[int, bytes] = {}
        self.num_users: dict[int, int] = {}
        self.shared: set[int] = set()
        self.idle: dict[int, None] = {}

    def move(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Notes that blocks in use have moved; blocks that are not stored are passed over."""
        for source, destination in zip(sources, destinations, strict=True):
            key = self.key_of.pop(source, None)
            if key is not None:
                self.key_of[destination] = key
                self.offset_of[key] = destination
                self.num_users[destination] = self.num_users.pop(source)
                if source in self.shared:
                    self.shared.remove(source)
                    self.shared.add(destination)

    def forget(self, offsets: Sequence[int]) -> None:
        for offset in offsets:
            del self.offset_of[self.key_of.pop(offset)]
            del self.num_users[offset]
            del self.idle[offset]


class BlockStore:
    """Gives out the blocks of a ``KVPool`` and counts the users of each; all blocks are had from here.

    Args:
        pool: the pool that only this object allocates from, frees to and sets the limit of.
        preempt_parked: makes one sequence of a parked model give up its blocks, given how many pages are wanted;
            False if none holds any.
    """

    def __init__(self, pool: KVPool, preempt_parked: Callable[[int], bool] = lambda num_pages: False) -> None:
        self._pool = pool
        self._preempt_parked = preempt_parked
        self._stored: dict[str, tuple[_StoredBlocks, ...]] = {}
        self._move: dict[str, MoveBlocks] = {}

    def add_model(
        self,
        replica_id: str,
        groups: Sequence[KVGroup],
        guarantee_bytes: int,
        cap_bytes: int | None,
        move: MoveBlocks,
    ) -> None:
        """Lets a model draw blocks, as ``KVPool.add_model`` does.

        Args:
            move: moves the model's blocks; called while another model asks for room, or while the pool
                shrinks.
        """
        self._pool.add_model(replica_id, groups, guarantee_bytes, cap_bytes)
        self._stored[replica_id] = tuple(_StoredBlocks() for _ in groups)
        self._move[replica_id] = move

    def remove_model(self, replica_id: str) -> None:
        """Ends a model's share and gives up the blocks stored for it, none of which has a user."""
        for group, stored in enumerate(self._stored[replica_id]):
            self._give_up(replica_id, group, np.array(list(stored.idle), np.int64))
        self._pool.remove_model(replica_id)
        del self._stored[replica_id], self._move[replica_id]

    def drop_model(self, replica_id: str) -> None:
        """Ends a model's share with all its blocks, used or stored, whatever the books say of them."""
        self._pool.drop_model(replica_id)
        del self._stored[replica_id], self._move[replica_id]

    def park(self, replica_id: str) -> None:
        """Takes a model's guarantee, as ``KVPool.park`` does; its blocks stay, stored ones too."""
        self._pool.park(replica_id)

    def unpark(self, replica_id: str) -> None:
        """Gives a parked model its guarantee back, as ``KVPool.unpark`` does."""
        self._pool.unpark(replica_id)

    def set_limit(self, num_bytes: int) -> None:
        """Sets the pool's lease, as ``KVPool.set_limit`` does; ``shrink`` then frees what can be freed."""
        self._pool.set_limit(num_bytes)

    # Blocks for one user ---------------------------------------------------------------------------

    def can_allocate(self, replica_id: str, num_blocks: Sequence[int]) -> bool:
        """Whether ``make_room`` would find room for ``num_blocks[g]`` more blocks of every group g, all
        together."""
        return self.pages_short(replica_id, num_blocks) <= 0

    def pages_short(self, replica_id: str, num_blocks: Sequence[int]) -> int:
        """Pages that ``make_room`` would lack for so many more blocks; 0 or less if it lacks none."""
        pool = self._pool
        return min(
            pool.pages_short(replica_id, num_blocks),
            pool.pages_short_without_idle(replica_id, num_blocks),
            pool.pages_short_without_gaps(replica_id, num_blocks),
            pool.pages_short_without_parked(replica_id, num_blocks),
        )

    def make_room(self, replica_id: str, num_blocks: Sequence[int]) -> bool:
        """Gives up idle blocks, moves other models' blocks, and preempts parked sequences, until ``num_blocks[g]``
        blocks of every group g can be allocated, one group after the other. If that would not be enough, changes
        nothing and returns False."""
        if self._pool.pages_short(replica_id, num_blocks) <= 0:
            return True
        if not self.can_allocate(replica_id, num_blocks):
            return False
        while (num_pages := self._pool.pages_short_without_gaps(replica_id, num_blocks)) > 0:
            if not self._preempt_parked(num_pages):
                raise InternalError(f"parked models keep blocks that {replica_id} was to have")
        self._empty_pages(self._pool.pages_short_without_idle(replica_id, num_blocks), replica_id)
        while (num_pages := self._pool.pages_short(replica_id, num_blocks)) > 0:
            num_own = self._pool.pages_over_cap(replica_id, num_blocks)
            if not self._give_up_pages(num_own or num_pages, replica_id, own=num_own > 0):
                self._give_up_blocks(replica_id, self._pool.blocks_short(replica_id, num_blocks))
        return True

    def allocate(self, replica_id: str, group: int, num_blocks: int) -> NDArray[np.int64] | None:
        """Takes blocks of one group, with one user each; all or nothing.

        Returns:
            Granule offsets int64 ``[num_blocks]``; None if there is no room and ``make_room`` was not asked
            for it, or if the device has less memory than was leased and no idle block, nor any that a parked
            sequence gave up, could stand in.
        """
        offsets = self._pool.allocate(replica_id, group, num_blocks)
        if offsets is None and (
            self._give_up_pages(num_blocks, replica_id)
            or self._give_up_in_place(replica_id, group, num_blocks)
            or self._preempt_parked(1)
        ):
            offsets = self._pool.allocate(replica_id, group, num_blocks)
        return offsets

    def free(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        """Takes one user from each of these blocks. A stored block becomes idle when its last user is gone
        (of those named here, the later ones will be given up first); a block that is not stored goes back to
        the pool."""
        stored = self._stored[replica_id][group]
        if not stored.num_users:
            self._pool.free(replica_id, group, offsets)
            return
        unstored: list[int] = []
        idle: list[int] = []
        for offset in reversed(offsets.tolist()):
            num_users = stored.num_users.get(offset)
            if num_users is None:
                unstored.append(offset)
                continue
            stored.num_users[offset] = num_users - 1
            if num_users == 2:
                stored.shared.remove(offset)
            elif num_users == 1:
                idle.append(offset)
                stored.idle[offset] = None
        if idle:
            self._pool.set_idle(replica_id, group, np.array(idle, np.int64))
        if unstored:
            self._pool.free(replica_id, group, np.array(unstored, np.int64))

    # Stored blocks ---------------------------------------------------------------------------------

    def find(self, replica_id: str, group: int, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Granule offset of the block stored under each key, 0 for a key that has none; int64."""
        offset_of = self._stored[replica_id][group].offset_of
        return np.array([offset_of.get(key, 0) for key in keys], np.int64)

    def is_stored(self, replica_id: str, group: int, key: bytes) -> bool:
        """Whether ``find`` would find a block."""
        return key in self._stored[replica_id][group].offset_of

    def use(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        """Adds one user to each of these stored blocks."""
        stored = self._stored[replica_id][group]
        idle: list[int] = []
        for offset in offsets.tolist():
            num_users = stored.num_users[offset]
            stored.num_users[offset] = num_users + 1
            if num_users == 1:
                stored.shared.add(offset)
            elif num_users == 0:
                idle.append(offset)
                del stored.idle[offset]
        if idle:
            self._pool.set_in_use(replica_id, group, np.array(idle, np.int64))

    def store(self, replica_id: str, group: int, keys: Sequence[bytes], offsets: NDArray[np.int64]) -> None:
        """Stores full, computed blocks that are in use. If a key has a block already, ``find`` goes on
        finding that one, and the new block remains its user's own."""
        stored = self._stored[replica_id][group]
        for key, offset in zip(keys, offsets.tolist(), strict=True):
            if key not in stored.offset_of and offset not in stored.key_of:
                stored.offset_of[key] = offset
                stored.key_of[offset] = key
                stored.num_users[offset] = 1

    def num_users(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of users of each of these blocks, int64; every one of them is allocated."""
        num_users = self._stored[replica_id][group].num_users
        return np.array([num_users.get(offset, 1) for offset in offsets.tolist()], np.int64)

    def shared(self, replica_id: str, group: int) -> NDArray[np.int64]:
        """Granule offsets of the stored blocks that have several users, int64 [n]."""
        return np.array(list(self._stored[replica_id][group].shared), np.int64)

    def shrink(self, most_pages: int) -> bool:
        """Gives up idle pages while the pool is over its limit, or else moves blocks out of other pages, up to so
        many; False if neither freed a page."""
        num_pages = min(self._pool.pages_to_empty, most_pages)
        return self._give_up_pages(num_pages, None) or self._empty_pages(num_pages, None)

    def check_integrity(self) -> None:
        """Checks that every stored block has one key, and is idle exactly if it has no user.

        Raises:
            InternalError: the books contradict each other, which is a bug; the message names the model.
        """
        for replica_id, groups in self._stored.items():
            idle_bytes = 0
            for group, stored in enumerate(groups):
                unused = {offset for offset, num_users in stored.num_users.items() if num_users == 0}
                inverse = {key: offset for offset, key in stored.key_of.items()}
                if inverse != stored.offset_of or stored.key_of.keys() != stored.num_users.keys():
                    raise InternalError(f"group {group} of {replica_id}: keys and blocks do not match")
                if unused != stored.idle.keys() or min(stored.num_users.values(), default=0) < 0:
                    raise InternalError(
                        f"group {group} of {replica_id}: idle blocks are not those without users"
                    )
                if stored.shared != {
                    offset for offset, num_users in stored.num_users.items() if num_users > 1
                }:
                    raise InternalError(
                        f"group {group} of {replica_id}: shared blocks are not those with several users"
                    )
                idle_bytes += len(unused) * self._pool.blocks_of(replica_id, group).group.block_bytes
            if idle_bytes != self._pool.usage(replica_id).idle_bytes:
                raise InternalError(f"{replica_id}: the pool does not know the idle blocks")

    # Giving up -------------------------------------------------------------------------------------

    def _give_up_pages(self, num_pages: int, wanted_by: str | None, *, own: bool = False) -> bool:
        chosen = self._pool.longest_idle(num_pages, wanted_by, own=own)
        for replica_id, group, offsets in chosen:
            self._give_up(replica_id, group, offsets)
        return bool(chosen)

    def _empty_pages(self, num_pages: int, wanted_by: str | None) -> bool:
        """Moves blocks in use until ``num_pages`` more pages are free, or as many as can be; False if none
        is."""
        chosen = self._pool.sparsest(num_pages, wanted_by) if num_pages > 0 else []
        for replica_id, group, pages in chosen:
            blocks = self._pool.blocks_of(replica_id, group)
            idle_within, idle_beside, num_too_many = blocks.in_the_way(pages)
            self._give_up(replica_id, group, idle_within)
            stored = self._stored[replica_id][group]
            oldest = islice((offset for offset in stored.idle if offset in idle_beside), num_too_many)
            self._give_up(replica_id, group, np.array(list(oldest), np.int64))
            sources, destinations = blocks.take_elsewhere(pages)
            try:
                self._move[replica_id](group, sources, destinations)
            except BaseException:  # nobody uses the new blocks
                self._pool.free(replica_id, group, destinations)
                raise
            stored.move(sources.tolist(), destinations.tolist())
            self._pool.free(replica_id, group, sources)
        return bool(chosen)

    def _give_up_in_place(self, replica_id: str, group: int, num_blocks: int) -> bool:
        """Gives up as many idle blocks of a group as ``num_blocks`` more need, beside the places that are
        vacant in its pages; False, and nothing changed, if the group has too few."""
        wanted = [num_blocks if g == group else 0 for g in range(len(self._stored[replica_id]))]
        short = self._pool.blocks_short(replica_id, wanted)
        if not 0 < short[group] <= len(self._stored[replica_id][group].idle):
            return False
        self._give_up_blocks(replica_id, short)
        return True

    def _give_up_blocks(self, replica_id: str, num_blocks: Sequence[int]) -> None:
        num_given_up = 0
        for group, wanted in enumerate(num_blocks):
            offsets = list(islice(self._stored[replica_id][group].idle, wanted))
            self._give_up(replica_id, group, np.array(offsets, np.int64))
            num_given_up += len(offsets)
        if not num_given_up:
            raise InternalError(f"{replica_id} has no idle blocks left and was to have room")

    def _give_up(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        if len(offsets):
            self._stored[replica_id][group].forget(offsets.tolist())
            self._pool.set_in_use(replica_id, group, offsets)
            self._pool.free(replica_id, group, offsets)
