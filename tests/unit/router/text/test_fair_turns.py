"""Who gets the next turn."""

from __future__ import annotations

import asyncio

from router.tenancy.tenant import ANONYMOUS, Tenant
from router.text.fair_turns import FairTurns

ONE, OTHER = Tenant("one", b"1"), Tenant("other", b"2")


class Work:
    """Texts that wait for a turn, and those that have one."""

    def __init__(self, num_turns: int) -> None:
        self._turns = FairTurns(num_turns)
        self._ends: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, tenant: Tenant, *texts: str) -> None:
        for text in texts:
            self.tasks[text] = asyncio.create_task(self._do(tenant, text))
        await settle()

    async def end(self, text: str) -> None:
        self._ends[text].set()
        await settle()

    async def _do(self, tenant: Tenant, text: str) -> None:
        async with self._turns.turn(tenant):
            self.begun.append(text)
            self._ends[text] = asyncio.Event()
            await self._ends[text].wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_tenants_many_texts_stand_before_no_other_tenants() -> None:
    work = Work(2)
    await work.ask(ONE, *"abcdef")
    assert work.begun == ["a", "b"]
    await work.ask(OTHER, *"xyz")
    await work.ask(ANONYMOUS, "0")
    for text in "abx":
        await work.end(text)
    assert work.begun == ["a", "b", "x", "y", "0"]  # two of the second tenant are before c
    for text in "y0cd":
        await work.end(text)
    assert work.begun == ["a", "b", "x", "y", "0", "c", "d", "z", "e"]
    for text in "zef":
        await work.end(text)
    assert all(each.done() for each in work.tasks.values())


async def test_whoever_gives_up_leaves_no_place_taken() -> None:
    work = Work(1)
    await work.ask(ONE, *"abc")
    await work.ask(OTHER, "x")
    for text in "abx":
        work.tasks[text].cancel()
    await settle()
    assert work.begun == ["a", "c"]
    await work.end("c")
    await work.ask(OTHER, "y")
    assert work.begun == ["a", "c", "y"]
    await work.end("y")
