"""Stored blocks under random traffic of several models: every block has the users that it was given, wherever it is
moved, room is made exactly where it can be, and nothing within another's guarantee is touched. A parked model has no
guarantee, and gives up what others need; one that comes back leaves the others theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.kv_spec import KVGroup

NUM_PAGES = 20
GROUPS = {
    "small": (KVGroup((0,), "full", PAGE // 64, 8), KVGroup((1,), "window", PAGE // 16, 4, 32)),
    "odd": (KVGroup((0,), "full", 300 * 1024, 2),),  # three to a page and a tail
    "whole": (KVGroup((0, 1), "full", PAGE // 32, 16),),
}
GUARANTEES = {"small": 3, "odd": 0, "whole": 4}
CAPS = {"small": None, "odd": 6, "whole": None}
models = st.sampled_from(sorted(GROUPS))


class CacheTraffic(RuleBasedStateMachine):
    @initialize()
    def build(self) -> None:
        self.arena = HostArena(NUM_PAGES * PAGE, stock_limit_bytes=NUM_PAGES * PAGE)
        self.pool = KVPool(self.arena, NUM_PAGES * PAGE)
        self.cache = BlockStore(self.pool, self._preempt_parked)
        self.parked: set[str] = set()
        self.users: dict[tuple[str, int], Counter[int]] = {}
        self.keys: dict[tuple[str, int], dict[bytes, int]] = {}  # stored, as far as nobody gave it up
        self.num_keys = 0
        self.limit = NUM_PAGES // 2
        self.pool.set_limit(self.limit * PAGE)

    @rule(model=models)
    def add_or_remove(self, model: str) -> None:
        if (model, 0) not in self.users:
            cap = CAPS[model]
            self.cache.add_model(
                model,
                GROUPS[model],
                GUARANTEES[model] * PAGE,
                None if cap is None else cap * PAGE,
                partial(self._move, model),
            )
            for group in range(len(GROUPS[model])):
                self.users[model, group], self.keys[model, group] = Counter(), {}
        elif model not in self.parked and not any(
            self.users[model, group].total() for group in range(len(GROUPS[model]))
        ):
            self.cache.remove_model(model)
            for group in range(len(GROUPS[model])):
                del self.users[model, group], self.keys[model, group]

    @rule(model=models)
    def park_or_unpark(self, model: str) -> None:
        if model in self.parked:
            self.parked.remove(model)
            self.cache.unpark(model)
            while self.pool.crowds_others(model):
                assert self._pages_beyond_room(model) > 0
                if not self._preempt(model):  # the limit is below the guarantees
                    break
            else:
                assert self._pages_beyond_room(model) <= 0
        elif (model, 0) in self.users:
            before = self.pool.usage(model)
            self.parked.add(model)
            self.cache.park(model)
            assert self.pool.usage(model) == before

    @precondition(lambda self: self._loaded() - self.parked)
    @rule(data=st.data(), counts=st.lists(st.integers(0, 20) | st.integers(20, 60), min_size=2, max_size=2))
    def allocate(self, data: st.DataObject, counts: list[int]) -> None:
        model = data.draw(st.sampled_from(sorted(self._loaded() - self.parked)))
        wanted = counts[: len(GROUPS[model])]
        others = {other: self.pool.usage(other) for other in self._loaded() - {model}}
        possible = self.cache.can_allocate(model, wanted)
        assert possible == self._fits(model, wanted)
        assert possible or not self.pool.can_allocate(model, wanted)
        assert self.cache.make_room(model, wanted) == possible
        self._check_what_is_gone()  # before the new blocks stand where evicted ones stood
        for other, before in others.items():
            after = self.pool.usage(other)
            assert after.live_bytes == before.live_bytes or (possible and other in self.parked)
            if other not in self.parked and after.held_bytes < before.held_bytes:
                assert after.held_bytes >= GUARANTEES[other] * PAGE
        if possible:
            for group, count in enumerate(wanted):
                offsets = self.cache.allocate(model, group, count)
                assert offsets is not None
                assert not set(offsets.tolist()) & self.users[model, group].keys()
                self.users[model, group].update(offsets.tolist())

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.users)))
        held = sorted(offset for offset, count in self.users[place].items() if count == 1)
        chosen = data.draw(st.lists(st.sampled_from(held), unique=True)) if held else []
        chosen = [offset for offset in chosen if offset not in self._stored(place).values()]
        keys = [b"%d" % (self.num_keys + i) for i in range(len(chosen))]
        self.num_keys += len(chosen)
        self.cache.store(*place, keys, np.array(chosen, np.int64))
        self.keys[place] |= dict(zip(keys, chosen, strict=True))

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def store_again_under_a_key_that_is_taken(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.users)))
        stored = self._stored(place)
        own = sorted(set(self.users[place]) - set(stored.values()))
        if stored and own:
            key = data.draw(st.sampled_from(sorted(stored)))
            self.cache.store(*place, [key], np.array(own[:1], np.int64))
            assert self._stored(place) == stored

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.users)))
        stored = self._stored(place)
        if stored:
            chosen = data.draw(st.lists(st.sampled_from(sorted(stored)), unique=True))
            offsets = [stored[key] for key in chosen]
            self.cache.use(*place, np.array(offsets, np.int64))
            self.users[place].update(offsets)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.users)))
        if held := sorted(self.users[place]):
            chosen = data.draw(st.lists(st.sampled_from(held), unique=True))
            self.cache.free(*place, np.array(chosen, np.int64))
            self.users[place] -= Counter(chosen)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), step=st.integers(1, 4))
    def free_every_so_many(self, data: st.DataObject, step: int) -> None:
        """Leaves gaps in every page."""
        place = data.draw(st.sampled_from(sorted(self.users)))
        chosen = sorted(self.users[place])[::step]
        self.cache.free(*place, np.array(chosen, np.int64))
        self.users[place] -= Counter(chosen)

    @rule(num_pages=st.integers(1, NUM_PAGES))
    def set_limit(self, num_pages: int) -> None:
        self.pool.set_limit(num_pages * PAGE)
        live = {model: self.pool.usage(model).live_bytes for model in self._loaded()}
        while self.pool.pages_to_empty and self.cache.shrink(2):
            self.pool.check_integrity()
        self.pool.let_leave(NUM_PAGES)
        within = self.pool.pages_over_limit == 0
        assert live == {model: self.pool.usage(model).live_bytes for model in self._loaded()}
        self.limit = num_pages
        if not within:
            assert sum(self.pool.usage(model).held_bytes for model in self._loaded()) == PAGE * sum(
                self._fewest_pages(model) for model in self._loaded()
            )

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        self.cache.check_integrity()
        self._check_what_is_gone()
        for place, users in self.users.items():
            offsets = np.array(sorted(users), np.int64)
            assert self.cache.num_users(*place, offsets).tolist() == [
                users[offset] for offset in sorted(users)
            ]
        for model in self._loaded():
            usage = self.pool.usage(model)
            places = [
                (place, GROUPS[model][place[1]].block_bytes) for place in self.users if place[0] == model
            ]
            assert usage.live_bytes == sum(len(self.users[place]) * size for place, size in places)
            assert usage.idle_bytes == sum(
                len(set(self._stored(place).values()) - self.users[place].keys()) * size
                for place, size in places
            )

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()

    def _check_what_is_gone(self) -> None:
        """Only what has no user may have been given up."""
        for place, users in self.users.items():
            gone = self.keys[place].keys() - self._stored(place).keys()
            assert not {self.keys[place].pop(key) for key in gone} & users.keys()

    def _move(
        self, model: str, group: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]
    ) -> None:
        """Sources are in use; destinations are nobody's, and lie in pages that stay."""
        users, keys = self.users[model, group], self.keys[model, group]
        moves = dict(zip(sources.tolist(), destinations.tolist(), strict=True))
        granules = PAGE // GROUPS[model][group].granule_bytes
        assert len(set(moves.values())) == len(moves)
        assert moves.keys() <= users.keys()
        assert not set(moves.values()) & users.keys()
        assert not {each // granules for each in moves} & {each // granules for each in moves.values()}
        stays = self._stored((model, group)).keys()  # told before the cache itself knows of the move
        for key in keys.keys() - stays:
            del keys[key]
        for source, destination in moves.items():
            users[destination] = users.pop(source)
        keys |= {key: moves[offset] for key, offset in keys.items() if offset in moves}

    def _fits(self, model: str, wanted: list[int]) -> bool:
        """Whether so many blocks have room in pages that the model holds, or beside what is in use, the others' in
        as few pages as hold it."""
        in_use = needed = 0
        fits_in_place = True
        for (name, index), users in self.users.items():
            if name == model:
                kept = users.keys() | set(self._stored((name, index)).values())
                fits_in_place &= wanted[index] <= self._spare(model, index, kept)
                in_use += len(self._pages(model, index, users))
                short = max(0, wanted[index] - self._spare(model, index, users))
                needed += -(-short // GROUPS[model][index].blocks_per_page)
        room = self.limit - 1 - in_use - self._promised_pages(model)
        cap = CAPS[model]
        return fits_in_place or not needed or needed <= (room if cap is None else min(room, cap - in_use))

    def _promised_pages(self, model: str) -> int:
        """Pages that the others need, parked ones left out."""
        others = self._loaded() - self.parked - {model}
        return sum(max(self._fewest_pages(other), GUARANTEES[other]) for other in others)

    def _pages_beyond_room(self, model: str) -> int:
        """Pages in use by a model beyond those that the others leave it."""
        in_use = sum(
            len(self._pages(name, g, users)) for (name, g), users in self.users.items() if name == model
        )
        return in_use - (self.limit - 1 - self._promised_pages(model))

    def _preempt_parked(self, num_pages: int) -> bool:
        assert num_pages > 0
        return any(self._preempt(model) for model in sorted(self.parked))

    def _preempt(self, model: str) -> bool:
        """Takes up to five users from the blocks of a model, like a sequence that leaves; False if it has none."""
        for place, users in self.users.items():
            if place[0] == model and users:
                leaving = sorted(users)[:5]
                self.cache.free(*place, np.array(leaving, np.int64))
                self.users[place] -= Counter(leaving)
                return True
        return False

    def _spare(self, model: str, index: int, offsets: Collection[int]) -> int:
        """Slots of the pages of these blocks that are no block's of them."""
        return len(self._pages(model, index, offsets)) * GROUPS[model][index].blocks_per_page - len(offsets)

    def _pages(self, model: str, index: int, offsets: Iterable[int]) -> set[int]:
        return {offset * GROUPS[model][index].granule_bytes // PAGE for offset in offsets}

    def _fewest_pages(self, model: str) -> int:
        return sum(
            -(-len(users) // GROUPS[name][index].blocks_per_page)
            for (name, index), users in self.users.items()
            if name == model
        )

    def _loaded(self) -> set[str]:
        return {model for model, _ in self.users}

    def _stored(self, place: tuple[str, int]) -> dict[bytes, int]:
        keys = list(self.keys[place])
        found = self.cache.find(*place, keys).tolist()
        assert all(offset in (0, self.keys[place][key]) for key, offset in zip(keys, found, strict=True))
        return {key: offset for key, offset in zip(keys, found, strict=True) if offset}


TestCacheTraffic = CacheTraffic.TestCase
TestCacheTraffic.settings = settings(max_examples=100, stateful_step_count=60)
