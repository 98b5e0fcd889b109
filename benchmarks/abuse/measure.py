"""Runs one attack and measures what the good client notices of it and what memory stays."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.abuse.probe import Found
from benchmarks.abuse.target import Attack, Strike, Target
from benchmarks.abuse.victims import Victims, resident_bytes
from mooring.errors import InternalError
from mooring.units import MIB
from ops.running_server import RunningServer

__all__ = ["Run", "measure"]

_MAX_STRIKE_S = 40.0  # a server that an attack holds for longer is as good as dead
_MIN_QUIET_S, _MAX_QUIET_S = 0.5, 4.0
_SAMPLE_S = 0.05
_SETTLE_S, _MAX_SETTLE_S = 0.2, 8.0
_NUM_SETTLED = 3  # readings one after the other, none of them less than the one before


@dataclass(frozen=True, slots=True)
class Run:
    """One attack, and as long a time without it.

    Attributes:
        stall_ms: longest stall during the attack.
        quiet_stall_ms: longest stall without it.
        pause_ms: longest time without a token of the good stream during the attack.
        seconds: length of the attack.
        peak_bytes: most memory during the attack beyond that before the first one.
        kept_bytes: memory beyond that before the first one, once all has settled and models that the attack
            registered are deleted: what a model needs while it exists is its own.
        is_altered: whether the good stream broke off or said anything else.
        died: whether the server ended, or had to be ended.
        answers: number of the attacker's requests by what became of them.
        errors: number of the good stream's errors by what they were.
    """

    stall_ms: float
    quiet_stall_ms: float
    pause_ms: float
    seconds: float
    peak_bytes: int
    kept_bytes: int
    is_altered: bool
    died: bool
    answers: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)


def measure(victims: Victims, target: Target, attack: Attack, num_runs: int) -> list[Run]:
    """Runs an attack several times, each time followed by a time without it; ends early if the server dies."""
    bench = _Bench(victims, target)
    runs: list[Run] = []
    while len(runs) < num_runs and not (runs and runs[-1].died):
        runs.append(bench.run(attack(target)))
    return runs


class _Bench:
    def __init__(self, victims: Victims, target: Target) -> None:
        self._victims = victims
        self._target = target
        self._watched(partial(time.sleep, _MIN_QUIET_S))  # what a server takes once is no attacker's
        self._before_bytes = _settled_bytes(target.server)

    def run(self, strike: Strike) -> Run:
        server = self._target.server
        answers: Counter[str] = Counter()
        began_s = time.monotonic()
        with _peak_of(server) as peak:
            found = self._watched(lambda: answers.update(_bounded(strike, server)))
        seconds = time.monotonic() - began_s
        died = found is None or server.process.poll() is not None
        if died or found is None:
            stall_ms = 1e3 * seconds
            return Run(
                stall_ms, 0.0, stall_ms, seconds, peak() - self._before_bytes, 0, True, True, dict(answers)
            )
        kept_bytes = _settled_bytes(server) - self._before_bytes
        quiet = self._watched(partial(time.sleep, min(max(seconds, _MIN_QUIET_S), _MAX_QUIET_S)))
        if quiet is None:
            raise InternalError(f"the server did not get over the attack:\n{server.log()}")
        good_text = self._victims.good_text
        return Run(
            stall_ms=found.stall_ms,
            quiet_stall_ms=quiet.stall_ms,
            pause_ms=found.pause_ms,
            seconds=seconds,
            peak_bytes=peak() - self._before_bytes,
            kept_bytes=kept_bytes,
            is_altered=bool(found.errors) or not all(map(good_text.startswith, found.texts)),
            died=False,
            answers=dict(answers),
            errors=dict(Counter(found.errors)),
        )

    def _watched(self, work: Callable[[], object]) -> Found | None:
        """The findings of a good client while the work is done; None if it is not served again after it."""
        host, port = self._target.http
        command = [sys.executable, "-m", "benchmarks.abuse.probe", host, str(port), self._victims.good_key]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
            try:
                assert probe.stdout is not None
                if probe.stdout.readline() != "ready\n":
                    raise InternalError("the good client did not start")
                work()
                if self._target.server.process.poll() is not None:
                    return None
                said, _ = probe.communicate("\n", _MAX_STRIKE_S)
            except subprocess.TimeoutExpired:
                return None
            finally:
                probe.kill()
        return Found(**json.loads(said)) if said else None


def _bounded(strike: Strike, server: RunningServer) -> list[str]:
    """Runs a strike. If it takes too long the server is ended, and the strike with it."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(strike)
        try:
            return list(pending.result(_MAX_STRIKE_S))
        except TimeoutError:
            server.kill()
            return ["no end"]


@contextmanager
def _peak_of(server: RunningServer) -> Iterator[Callable[[], int]]:
    """Looks at a server's memory all the time; yields a function that tells the most."""
    readings = [0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SAMPLE_S):
            readings.append(resident_bytes(server))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield lambda: max(readings)
    finally:
        over.set()
        looking.join()


def _settled_bytes(server: RunningServer) -> int:
    """A server's memory once it has stopped falling."""
    until_s = time.monotonic() + _MAX_SETTLE_S
    least, num_settled = resident_bytes(server), 0
    while num_settled < _NUM_SETTLED and time.monotonic() < until_s:
        time.sleep(_SETTLE_S)
        now = resident_bytes(server)
        num_settled = 0 if now < least - MIB else num_settled + 1
        least = min(least, now)
    return least
