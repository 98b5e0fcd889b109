"""Steps and copies at the cores of a CPU device: who has them when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from support.until import until

from engines.torch.core_turns import CoreTurns


class House:
    """One that steps, and any number that copy, each on a thread of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turns = CoreTurns(lambda: self.now_s)
        self.threads = ThreadPoolExecutor(4)

    def copy(self, share: float, told: list[str], name: str = "copy") -> Future[None]:
        """Waits for a turn, which is noted and over at once."""

        def run() -> None:
            with self.turns.copy(share):
                told.append(name)

        copying = self.threads.submit(run)
        until(lambda: copying.done() or self.turns.num_copies_waiting > 0)
        return copying


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.threads.shutdown()


def test_a_copy_is_not_held_up_where_nobody_steps(house: House) -> None:
    with house.turns.copy(0.5) as is_over:
        house.now_s += 1000.0
        assert not is_over()


def test_a_copy_waits_for_the_step_and_goes_before_the_next_one(house: House) -> None:
    told: list[str] = []
    with house.turns.step():
        copying = house.copy(0.5, told)
        told.append("step")
    with house.turns.step():
        told.append("next step")
    copying.result(10)
    assert told == ["step", "copy", "next step"]


def test_a_long_step_gives_way_between_its_layers(house: House) -> None:
    told: list[str] = []
    with house.turns.step():
        house.turns.give_way()
        copying = house.copy(0.5, told)
        house.turns.give_way()
        assert not told, "it has only just begun"
        house.now_s += 0.1
        house.turns.give_way()
        assert told == ["copy"]
    copying.result(10)


def test_what_a_step_gives_way_for_is_no_time_of_its_own(house: House) -> None:
    def copy() -> None:
        with house.turns.copy(0.5):
            house.now_s += 0.7

    with house.turns.step():
        began_s = house.turns.step_clock()
        copying = house.threads.submit(copy)
        until(lambda: house.turns.num_copies_waiting == 1)
        house.now_s += 0.1
        house.turns.give_way()
        assert house.turns.step_clock() - began_s == pytest.approx(0.1)
    copying.result(10)


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize(("step_s", "turn_s"), [(0.008, 0.008), (0.8, 0.03)])
def test_a_copys_turn_is_a_part_of_the_steps(
    house: House, share: float, step_s: float, turn_s: float
) -> None:
    with house.turns.step():
        house.now_s += step_s
    stepped = threading.Event()

    def step() -> None:
        with house.turns.step():
            stepped.set()

    with house.turns.copy(share) as is_over:
        house.now_s += share * turn_s + 0.001
        assert not is_over(), "nobody waits"
        stepping = house.threads.submit(step)
        until(is_over)
        house.now_s -= 0.002
        assert not is_over()
        assert not stepped.is_set()
    stepping.result(10)


def test_copies_share_the_cores_where_nobody_steps(house: House) -> None:
    told: list[str] = []
    with house.turns.copy(0.5):
        house.copy(0.5, told, "another").result(10)
        told.append("first")
    assert told == ["another", "first"]


def test_a_step_comes_after_all_copies_that_have_begun(house: House) -> None:
    told: list[str] = []

    def step() -> None:
        with house.turns.step():
            told.append("step")

    with house.turns.copy(0.5):
        with house.turns.copy(0.5) as is_over:
            house.now_s += 1.0
            stepping = house.threads.submit(step)
            until(is_over)
            late = house.copy(0.5, told, "late")
        told.append("second")
    stepping.result(10)
    late.result(10)
    assert told == ["second", "step", "late"]


def test_of_two_copies_one_goes_and_then_the_step(house: House) -> None:
    told: list[str] = []
    with house.turns.step():
        first, second = (house.copy(0.5, told, name) for name in ("first", "second"))
        until(lambda: house.turns.num_copies_waiting == 2)
    with house.turns.step():
        assert len(told) == 1
        told.append("step")
    first.result(10)
    second.result(10)
    assert told[1] == "step"


def test_a_step_that_fails_leaves_the_cores(house: House) -> None:
    with pytest.raises(RuntimeError), house.turns.step():
        raise RuntimeError
    with pytest.raises(RuntimeError), house.turns.copy(0.5):
        raise RuntimeError
    with house.turns.step():
        pass
