"""Steps and copies at the cores of a CPU device: who has them when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from support.core_signals import is_clear
from support.until import until

from engines.torch.weights.core_turns import _STEP_TURN_S, CoreTurns
from memory_manager.cores import CoreSignal


class House:
    """One that steps, and any number that copy, each on a thread of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.signal = CoreSignal.make()
        self.while_asleep: Callable[[], None] = lambda: None
        self.turns = CoreTurns(self.signal, lambda: self.now_s, self._sleep)
        self.threads = ThreadPoolExecutor(4)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.while_asleep()

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
    house.signal.close()


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


def test_a_step_gives_way_between_its_layers_at_once_and_again_after_its_own_turn(house: House) -> None:
    told: list[str] = []
    with house.turns.step():
        house.turns.give_way()
        first = house.copy(0.5, told, "first")
        assert not told, "a layer is being computed"
        house.turns.give_way()
        assert told == ["first"]
        second = house.copy(0.5, told, "second")
        house.now_s += _STEP_TURN_S / 2
        house.turns.give_way()
        assert told == ["first"], "the first has only just had a turn"
        house.now_s += _STEP_TURN_S
        house.turns.give_way()
        assert told == ["first", "second"]
    first.result(10)
    second.result(10)


def test_between_short_steps_no_copy_goes_before_they_have_had_their_turn(house: House) -> None:
    told: list[str] = []
    house.copy(0.5, told, "first").result(10)
    with house.turns.step():
        second = house.copy(0.5, told, "second")
    for _ in range(3):
        with house.turns.step():
            house.turns.give_way()
            house.now_s += _STEP_TURN_S / 4
    assert told == ["first"]
    with house.turns.step():
        house.now_s += _STEP_TURN_S
    second.result(10)


def test_a_copy_that_is_not_due_goes_when_no_step_follows() -> None:
    turns = CoreTurns()
    with ThreadPoolExecutor(1) as threads:
        with turns.copy(0.5):
            pass
        with turns.step():
            copying = threads.submit(_take_turn, turns)
            until(lambda: turns.num_copies_waiting == 1)
        copying.result(10)


def _take_turn(turns: CoreTurns) -> None:
    with turns.copy(0.5):
        pass


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
        assert house.signal.take_wanted() is False
        house.signal.want()
        house.now_s += 0.1
        house.turns.give_way()
        assert house.turns.step_clock() - began_s == pytest.approx(0.2)
    copying.result(10)


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize(("waited_s", "turn_s"), [(0.008, _STEP_TURN_S), (0.8, 0.8)])
def test_a_copys_turn_is_a_part_of_what_it_has_waited_for(
    house: House, share: float, waited_s: float, turn_s: float
) -> None:
    stepped = threading.Event()

    def step() -> None:
        with house.turns.step():
            stepped.set()

    def copy() -> None:
        with house.turns.copy(share) as is_over:
            house.now_s += share * turn_s + 0.001
            assert not is_over(), "nobody waits"
            stepping = house.threads.submit(step)
            until(is_over)
            house.now_s -= 0.002
            assert not is_over()
            assert not stepped.is_set()
        stepping.result(10)

    with house.turns.step():
        copying = house.threads.submit(copy)
        until(lambda: house.turns.num_copies_waiting == 1)
        house.now_s += waited_s
    copying.result(10)


def test_what_a_copy_waited_for_before_anothers_turn_does_not_lengthen_its_own(house: House) -> None:
    turns_s: list[float] = []

    def copy() -> None:
        with house.turns.copy(0.5) as is_over:
            began_s = house.now_s
            while not is_over():
                house.now_s += 0.001
            turns_s.append(house.now_s - began_s)

    with house.turns.step():
        copying = [house.threads.submit(copy) for _ in range(2)]
        until(lambda: house.turns.num_copies_waiting == 2)
        for _ in range(2):
            house.now_s += 0.8
            house.turns.give_way()
    for each in copying:
        each.result(10)
    assert turns_s == pytest.approx([0.4, 0.4], abs=0.002)


def test_a_step_that_is_late_after_a_copys_turn_has_its_own() -> None:
    """It is displaced for longer than its turn, between the copy's end and its own look at the clock."""
    late = threading.Event()

    def clock() -> float:
        if late.is_set() and threading.current_thread() is stepping:
            late.clear()
            time.sleep(1.5 * _STEP_TURN_S)
        return time.monotonic()

    turns, told = CoreTurns(clock=clock), []
    copying = threading.Event()

    def step() -> None:
        copying.wait()
        with turns.step():
            told.append("step")

    stepping = threading.Thread(target=step, daemon=True)
    stepping.start()
    with turns.copy(0.5) as is_over:
        copying.set()
        until(is_over)
        late.set()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(_take_turn, turns).result(10)
    stepping.join(10)
    assert told == ["step"]


def test_copies_go_one_after_another_where_nobody_steps_any_more(house: House) -> None:
    told: list[str] = []
    with house.turns.step():
        pass
    for name in ("first", "second"):
        house.copy(0.5, told, name).result(10)
    assert told == ["first", "second"]


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
    house.now_s += _STEP_TURN_S
    late.result(10)
    assert told == ["second", "step", "late"]


def test_of_two_copies_one_goes_and_then_the_step(house: House) -> None:
    told: list[str] = []
    with house.turns.step():
        first, second = (house.copy(0.5, told, name) for name in ("first", "second"))
        until(lambda: house.turns.num_copies_waiting == 2)
        house.turns.give_way()
        assert len(told) == 1
        told.append("step")
    house.now_s += _STEP_TURN_S
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


def test_the_signal_stops_the_servers_threads_during_steps(house: House) -> None:
    assert is_clear(house.signal)
    with house.turns.step():
        assert not is_clear(house.signal)
        house.copy(0.5, [])
        house.turns.give_way()
        assert not is_clear(house.signal), "the cores were the copy's"
    assert is_clear(house.signal)
    with pytest.raises(RuntimeError), house.turns.step():
        raise RuntimeError
    assert is_clear(house.signal)


def test_a_step_clears_the_signal_for_a_while_where_somebody_waits(house: House) -> None:
    clear: list[bool] = []
    house.while_asleep = lambda: clear.append(is_clear(house.signal))
    with house.turns.step():
        house.turns.give_way()
        assert not clear, "nobody waits"
        for times in range(1, 3):
            house.now_s += _STEP_TURN_S
            house.signal.want()
            house.turns.give_way()
            assert clear == [True] * times
            assert not is_clear(house.signal)
            house.signal.want()
            house.turns.give_way()
            assert len(clear) == times, "the step has not had its own turn"
            assert house.signal.take_wanted()
    had_s = (house.now_s - 2 * _STEP_TURN_S) / 2
    assert 0.1 * _STEP_TURN_S < had_s < 0.5 * _STEP_TURN_S, "for a small part of its time"


def test_the_servers_threads_have_turns_beside_steps_that_are_short(house: House) -> None:
    clear: list[bool] = []
    house.while_asleep = lambda: clear.append(is_clear(house.signal))
    for _ in range(100):
        with house.turns.step():
            house.signal.want()
            house.turns.give_way()
            house.now_s += _STEP_TURN_S / 20
    assert 3 <= len(clear) <= 6


def test_what_the_servers_threads_have_is_a_part_of_a_layer_that_takes_long(house: House) -> None:
    with house.turns.step():
        house.turns.give_way()
        house.now_s += 100 * _STEP_TURN_S
        house.signal.want()
        before_s = house.now_s
        house.turns.give_way()
        assert house.now_s - before_s > 10 * _STEP_TURN_S
        house.now_s += _STEP_TURN_S
        house.signal.want()
        before_s = house.now_s
        house.turns.give_way()
        assert 0 < house.now_s - before_s < _STEP_TURN_S


def test_a_copy_that_waits_goes_before_the_servers_threads(house: House) -> None:
    told: list[str] = []
    house.while_asleep = lambda: told.append("server")
    with house.turns.step():
        house.signal.want()
        copying = house.copy(0.5, told)
        house.turns.give_way()
        assert told == ["copy"]
        house.now_s += _STEP_TURN_S
        house.turns.give_way()
    copying.result(10)
    assert told == ["copy", "server"]
