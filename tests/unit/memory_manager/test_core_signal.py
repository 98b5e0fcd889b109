"""A signal between the steps of one process and the background threads of another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.until import until

from memory_manager.cores import CoreSignal, wait_clear


@pytest.fixture
def signal() -> Iterator[CoreSignal]:
    signal = CoreSignal.make()
    yield signal
    signal.close()


@pytest.fixture
def other() -> Iterator[CoreSignal]:
    other = CoreSignal.make()
    yield other
    other.close()


@pytest.fixture(autouse=True)
def _endless_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_manager.cores._ASK_AGAIN_S", 3600.0)


def test_a_signal_is_clear_at_first_and_nobody_asks(signal: CoreSignal) -> None:
    wait_clear([signal])
    assert not signal.take_wanted()


def test_without_signals_nothing_is_waited_for() -> None:
    wait_clear([])


def test_who_waits_asks_once_and_goes_when_another_process_clears_it(signal: CoreSignal) -> None:
    signal.stop()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(wait_clear, [signal]) for _ in range(2)]
        until(signal.take_wanted)
        assert not any(each.done() for each in waiting)
        program = (
            "import sys; from memory_manager.cores import CoreSignal;"
            "CoreSignal(*map(int, sys.argv[1:])).clear()"
        )
        arguments = [sys.executable, "-c", program, *map(str, signal.descriptors)]
        subprocess.run(arguments, pass_fds=signal.descriptors, check=True)
        for each in waiting:
            each.result(10)
    wait_clear([signal])  # it stays so


def test_one_stop_is_enough_however_often_it_was_cleared(
    signal: CoreSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_manager.cores._ASK_AGAIN_S", 0.0)
    for _ in range(3):
        signal.clear()
    for _ in range(2):
        signal.stop()
    wait_clear([signal])
    assert signal.take_wanted()
    assert not signal.take_wanted()


def test_of_several_signals_one_that_is_clear_is_enough(signal: CoreSignal, other: CoreSignal) -> None:
    signal.stop()
    wait_clear([signal, other])
    other.stop()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_clear, [signal, other])
        until(signal.take_wanted)
        until(other.take_wanted)
        signal.clear()
        waiting.result(10)


def test_nobody_waits_for_ever(signal: CoreSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_manager.cores._ASK_AGAIN_S", 0.001)
    signal.stop()
    wait_clear([signal])


def test_who_missed_a_turn_asks_again(signal: CoreSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_manager.cores._ASK_AGAIN_S", 0.005)
    monkeypatch.setattr("memory_manager.cores._MAX_ASKS", 1_000_000)
    signal.stop()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_clear, [signal])
        for _ in range(3):
            until(signal.take_wanted)
        signal.clear()
        waiting.result(10)


def test_a_closed_signal_writes_nowhere() -> None:
    closed = CoreSignal.make()
    closed.close()
    with pytest.raises(ValueError, match="negative"):
        closed.clear()
