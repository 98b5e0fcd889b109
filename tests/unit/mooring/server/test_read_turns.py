"""Connections take turns at reading."""

from __future__ import annotations

import asyncio

from mooring.server.read_turns import ReadTurns, TurnedFlow


class Transport(asyncio.Transport):
    """Notes how often it was told to read, and to cease."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.closing = False

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def is_closing(self) -> bool:
        return self.closing


async def test_a_few_read_in_each_turn_of_the_loop() -> None:
    turns, transports = ReadTurns(), [Transport() for _ in range(10)]
    flows = [TurnedFlow(each, turns) for each in transports]
    for flow in flows:
        flow.pause_reading()
        flow.resume_reading()
    num_reading = []
    for _ in range(4):
        await asyncio.sleep(0)
        num_reading.append(sum(each.told == ["pause", "resume"] for each in transports))
    assert num_reading == [4, 8, 10, 10]


async def test_one_that_pauses_again_before_its_turn_does_not_read_and_is_told_later() -> None:
    turns, transport, ending = ReadTurns(), Transport(), Transport()
    flow, gone = TurnedFlow(transport, turns), TurnedFlow(ending, turns)
    for each in (flow, gone):
        each.pause_reading()
        each.resume_reading()
    flow.pause_reading()
    ending.closing = True
    await asyncio.sleep(0)
    assert transport.told == ending.told == ["pause"]
    flow.resume_reading()
    flow.pause_reading()
    flow.resume_reading()
    await asyncio.sleep(0)
    assert transport.told == ["pause", "resume"]
