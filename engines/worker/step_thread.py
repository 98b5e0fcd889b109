"""The thread that owns the engine.

Everything that the engine's step can see is touched by this thread alone: commands queue up and run
between steps, so a cancel takes effect before the next step and no lock is held during one. What a step
produced is handed to the event loop in one call. At most ``_MAX_STEPS_AHEAD`` steps may be under way to it:
the loop carries one step's tokens out while the next one computes, and an engine faster than the loop waits
for it instead of filling memory. With nothing to do the thread sleeps on a condition.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engines.api import DeviceLostError, Engine, StepOutput, run_step
from engines.link.worker_memory import WorkerMemory

__all__ = ["StepThread"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MAX_STEPS_AHEAD = 2
# A step that gave nothing ran nothing: its sequences wait for memory. Asking again at once would be a busy loop, save
# where KV is given back; a command (a larger lease, a cancel) ends the pause early.
_PAUSE_S = 2e-3


class StepThread:
    """Runs ``engine`` and its commands on a thread of its own.

    Args:
        engine: owned by the thread from ``start`` on.
        memory: shared with the server, which reads how far the steps are and, after a death, which sequences the
            running step had.
        deliver: called on ``loop`` with what each step produced, in order.
        on_failure: called on ``loop`` when the engine raised; no step follows.
        niceness: added to the thread's own, and so to that of the threads which it computes with.
    """

    def __init__(
        self,
        engine: Engine,
        memory: WorkerMemory,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[list[StepOutput]], None],
        on_failure: Callable[[BaseException], None],
        niceness: int = 0,
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._niceness = niceness
        self._loop = loop
        self._deliver = deliver
        self._on_failure = on_failure
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._ahead = threading.Semaphore(_MAX_STEPS_AHEAD)
        self._thread = threading.Thread(target=self._run, name="engine-step", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread after its present step; False when that took longer than ``timeout_s``."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._ahead.release()  # the loop may be the caller, and then it carries nothing out any more
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def post(self, command: Callable[[], None]) -> None:
        """Runs ``command`` before the next step. Thread-safe; commands keep their order."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def look(self) -> None:
        """Asks the engine again whether it has work, after a verb on another thread. Thread-safe."""
        with self._wake:
            self._wake.notify()

    def call(self, command: Callable[[], Result]) -> Future[Result]:
        """Like ``post``; the future holds what ``command`` returned or raised."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(command())
            except Exception as error:  # told to whoever waits for the future, whatever it is
                future.set_exception(error)
                if isinstance(error, DeviceLostError):
                    raise

        self.post(run)
        return future

    def _run(self) -> None:
        os.nice(self._niceness)  # on Linux each thread has its own
        try:
            while self._run_commands():
                self._step()
        except Exception as error:  # the engine is broken: the process has to end and say why
            logger.exception("the engine failed outside any one sequence")
            self._loop.call_soon_threadsafe(self._on_failure, error)

    def _run_commands(self) -> bool:
        """Waits for work and runs the queued commands; False once the thread is to stop."""
        with self._wake:
            while not self._commands and not self._stopping and not self._engine.has_work():
                self._wake.wait()
            commands, self._commands = self._commands, deque()
            stopping = self._stopping
        for command in commands:
            command()
        return not stopping

    def _step(self) -> None:
        if not self._engine.has_work():
            return
        memory = self._memory
        memory.status.begin_step(time.monotonic())
        outputs = run_step(self._engine)  # if it raises, the worker ends, and the record says in which step
        memory.recorder.end_step()
        memory.status.end_step(time.monotonic())
        if outputs:
            self._ahead.acquire()
            if not self._stopping:
                self._loop.call_soon_threadsafe(self._deliver_on_loop, outputs)
        else:
            with self._wake:
                if not self._commands and not self._stopping and not self._engine.is_giving_back():
                    self._wake.wait(_PAUSE_S)

    def _deliver_on_loop(self, outputs: list[StepOutput]) -> None:
        try:
            self._deliver(outputs)
        finally:
            self._ahead.release()
