"""Random traffic of several models over one pool, against a plain model of what was handed out."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.hand_fence import HandFence

from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.kv_spec import KVGroup

NUM_PAGES = 24
GROUPS = {
    "small": (KVGroup((0,), "full", PAGE // 64, 8), KVGroup((1,), "window", PAGE // 16, 4, 32)),
    "odd": (KVGroup((0,), "full", 300 * 1024, 2),),  # three to a page and a tail
    "whole": (KVGroup((0, 1), "full", PAGE // 32, 16),),
}
GUARANTEES = {"small": 3, "odd": 0, "whole": 5}
CAPS = {"small": None, "odd": 6, "whole": None}
models = st.sampled_from(sorted(GROUPS))


class PoolTraffic(RuleBasedStateMachine):
    @initialize()
    def build(self) -> None:
        self.arena = HostArena(NUM_PAGES * PAGE, stock_limit_bytes=NUM_PAGES * PAGE)
        self.pool = KVPool(self.arena, NUM_PAGES * PAGE)
        self.held: dict[tuple[str, int], list[int]] = {}
        self.limit = self.most = 1
        self.fence = HandFence()
        self.pool.leave_behind(self.fence)

    @rule(num_pages=st.integers(0, NUM_PAGES + 2))
    def set_limit(self, num_pages: int) -> None:
        before = self.pool.committed_bytes
        self.pool.set_limit(num_pages * PAGE)
        assert self.pool.committed_bytes == max(before, PAGE)
        self.limit = min(max(1, num_pages), NUM_PAGES)
        assert self.pool.pages_over_limit == max(0, self.pool.committed_bytes // PAGE - self.limit)
        assert self.pool.pages_to_empty == max(0, 1 + sum(self._pages_held().values()) - self.limit)

    @rule()
    def pass_the_fence(self) -> None:
        self.fence.num_passed = self.fence.num_marked

    @rule(most_pages=st.integers(1, 3))
    def let_leave(self, most_pages: int) -> None:
        has_passed = self.fence.num_passed == self.fence.num_marked
        num_leaving = self.pool.pages_over_limit - self.pool.pages_to_empty
        num_left = self.pool.let_leave(most_pages)
        assert num_left <= min(most_pages, num_leaving)
        if has_passed:
            assert num_left == min(most_pages, num_leaving)

    @precondition(lambda self: len(self._loaded()) < len(GROUPS))
    @rule(model=models)
    def add(self, model: str) -> None:
        if model not in self._loaded():
            cap = CAPS[model]
            self.pool.add_model(
                model, GROUPS[model], GUARANTEES[model] * PAGE, None if cap is None else cap * PAGE
            )
            self.held |= {(model, group): [] for group in range(len(GROUPS[model]))}

    @rule(data=st.data(), count=st.integers(0, 40))
    def allocate(self, data: st.DataObject, count: int) -> None:
        if not self.held:
            return
        model, group = data.draw(st.sampled_from(sorted(self.held)))
        wanted = [count if index == group else 0 for index in range(len(GROUPS[model]))]
        before, possible = self._pages_held(), self.pool.can_allocate(model, wanted)
        offsets = self.pool.allocate(model, group, count)
        assert (offsets is not None) == possible
        needed = self._new_pages(model, group, count)
        assert possible == (needed == 0 or needed <= self._room(model, before)), (needed, before)
        if offsets is not None:
            assert offsets.shape == (count,)
            self.held[model, group] += offsets.tolist()

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        keys = sorted(key for key, offsets in self.held.items() if offsets)
        if keys:
            key = data.draw(st.sampled_from(keys))
            going = data.draw(st.sets(st.sampled_from(self.held[key]), min_size=1))
            self._free(key, going)

    @rule(model=models)
    def unload(self, model: str) -> None:
        keys = [key for key in self.held if key[0] == model]
        for key in keys:
            self._free(key, set(self.held[key]))
            del self.held[key]
        if keys:
            self.pool.remove_model(model)

    @invariant()
    def every_block_is_one_owners_and_lies_in_one_committed_page(self) -> None:
        page_owner: dict[int, tuple[str, int]] = {}
        taken: set[tuple[int, int]] = set()
        for (model, index), offsets in self.held.items():
            group = GROUPS[model][index]
            for offset in offsets:
                start = offset * group.granule_bytes
                page, within = divmod(start, PAGE)
                assert page > 0
                assert within + group.block_bytes <= PAGE
                assert page_owner.setdefault(page, (model, index)) == (model, index)
                assert (page, within) not in taken
                taken.add((page, within))

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        assert self.pool.committed_bytes == self.arena.committed_bytes
        pages = self._pages_held()
        self.most = max(self.limit, min(self.most, self.pool.committed_bytes // PAGE))
        assert self.pool.committed_bytes <= self.most * PAGE, "the lease is kept, or what was over it leaves"
        for model in self._loaded():
            held_bytes, live_bytes, _ = self.pool.usage(model)
            assert held_bytes == pages[model] * PAGE  # a page is held exactly while a block in it lives
            assert live_bytes == sum(
                len(self.held[model, index]) * group.block_bytes for index, group in enumerate(GROUPS[model])
            )

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()

    # --- the reference: everything recomputed from what was handed out

    def _loaded(self) -> set[str]:
        return {model for model, _ in getattr(self, "held", {})}

    def _free(self, key: tuple[str, int], offsets: set[int]) -> None:
        self.pool.free(*key, np.array(sorted(offsets), dtype=np.int64))
        self.held[key] = [offset for offset in self.held[key] if offset not in offsets]

    def _pages_of(self, model: str, index: int) -> set[int]:
        granule_bytes = GROUPS[model][index].granule_bytes
        return {offset * granule_bytes // PAGE for offset in self.held[model, index]}

    def _pages_held(self) -> dict[str, int]:
        held = dict.fromkeys(self._loaded(), 0)
        for model, index in self.held:
            held[model] += len(self._pages_of(model, index))
        return held

    def _new_pages(self, model: str, index: int, count: int) -> int:
        per_page = GROUPS[model][index].blocks_per_page
        before = self.held[model, index]
        spare = len(self._pages_of(model, index)) * per_page - len(before)
        return -(-max(0, count - spare) // per_page)

    def _room(self, model: str, held: dict[str, int]) -> int:
        promised = sum(max(0, GUARANTEES[o] - pages) for o, pages in held.items() if o != model)
        room = self.limit - 1 - sum(held.values()) - promised
        cap = CAPS[model]
        return room if cap is None else min(room, cap - held[model])


TestPoolTraffic = PoolTraffic.TestCase
TestPoolTraffic.settings = settings(max_examples=150, stateful_step_count=40)
