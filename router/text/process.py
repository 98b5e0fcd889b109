"""One process of a model's text as the server speaks to it: calls, answers, the clock, and which call is to blame for
its end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from mooring.errors import MooringError, error_from_code
from router.text.frames import Frame, FrameKind, FrameReader, pack_frame
from router.text.starter import StartedProcess

__all__ = ["ProcessLostError", "TextProcess", "TookTooLongError"]


class ProcessLostError(Exception):
    """The process ended before it had answered a call.

    Attributes:
        was_at_work: whether it worked on this call when it ended.
    """

    def __init__(self, was_at_work: bool) -> None:
        super().__init__("the process of a model's text ended")
        self.was_at_work = was_at_work


class TookTooLongError(Exception):
    """A call was worked on for longer than it may take."""


class TextProcess(asyncio.Protocol):
    """The server's end of a process. Belongs to one event loop.

    The process carries out calls in their order, and long calls beside them in copies of itself. So it is known
    which call it is at: the first one without an answer, since it was sent or since the answer before it came. If
    that takes too long the process is killed; of a long call, its copy alone.

    Args:
        started: the process.
        timeout_s: longest time that a call may take.

    Attributes:
        ready: the frame of the vocabulary, once the folder is read. It raises ArtifactError if the folder cannot be
            read, and ``ProcessLostError`` if the process ended before.
        is_lost: whether the process is gone.
    """

    def __init__(self, started: StartedProcess, timeout_s: float) -> None:
        self._started = started
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._last_id = 0
        self._calls: dict[int, asyncio.Future[Frame]] = {}  # in the order in which they were sent
        self._long_calls: dict[int, asyncio.Future[Frame]] = {}
        self._at_work_since_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[Frame] = self._loop.create_future()
        self.is_lost = False

    @property
    def is_idle(self) -> bool:
        """Whether every call has been answered."""
        return not self._calls and not self._long_calls

    async def connect(self) -> None:
        """Begins to read what the process says."""
        await self._loop.create_unix_connection(lambda: self, sock=self._started.connection)

    def call(self, content: dict[str, Any]) -> asyncio.Future[Frame]:
        """Sends a call and returns its result to come. The future raises MooringError if the call was refused,
        ``ProcessLostError`` and ``TookTooLongError``.

        Raises:
            TypeError: the content cannot be written as JSON.
        """
        request_id, result = self._send(FrameKind.CALL, content)
        if not self._calls:
            self._at_work_since_s = self._loop.time()
        self._calls[request_id] = result
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look_at_clock)
        return result

    def long_call(self, content: dict[str, Any]) -> asyncio.Future[Frame]:
        """Sends a long call, and returns its result to come as ``call`` does; a result that is cancelled ends the
        work on it.

        Raises:
            TypeError: the content cannot be written as JSON.
        """
        request_id, result = self._send(FrameKind.LONG_CALL, content)
        self._long_calls[request_id] = result
        clock = self._loop.call_later(self._timeout_s, self._give_up, result)

        def ended(_: asyncio.Future[Frame]) -> None:
            clock.cancel()
            if self._long_calls.pop(request_id, None) is not None and self._transport is not None:
                self._transport.write(pack_frame(request_id, FrameKind.CANCEL, {}))

        result.add_done_callback(ended)
        return result

    def close(self) -> None:
        """Ends the process. Safe to call more than once."""
        self._started.kill()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._started.connection.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except (ValueError, LookupError, TypeError):  # what comes from there may be anything
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._transport = None
        self._started.kill()
        if self._watch is not None:
            self._watch.cancel()
        calls, long_calls = list(self._calls.values()), list(self._long_calls.values())
        self._calls.clear()
        self._long_calls.clear()
        at_work = calls[:1] or long_calls  # a long call should not end the process, but nobody else is there
        for result in (*calls, *long_calls):
            if not result.done():
                result.set_exception(ProcessLostError(was_at_work=result in at_work))
        if not self.ready.done():
            self.ready.set_exception(ProcessLostError(was_at_work=False))

    def _send(self, kind: FrameKind, content: dict[str, Any]) -> tuple[int, asyncio.Future[Frame]]:
        self._last_id += 1
        packed = pack_frame(self._last_id, kind, content)
        result: asyncio.Future[Frame] = self._loop.create_future()
        if self._transport is None:
            result.set_exception(ProcessLostError(was_at_work=False))
        else:
            self._transport.write(packed)
        return self._last_id, result

    def _take(self, frame: Frame) -> None:
        if frame.request_id == 0:
            _settle(self.ready, frame)
        elif frame.request_id in self._calls:
            _settle(self._calls[frame.request_id], frame)
            del self._calls[frame.request_id]
            self._at_work_since_s = self._loop.time()
        elif frame.request_id in self._long_calls:
            _settle(self._long_calls[frame.request_id], frame)
            del self._long_calls[frame.request_id]

    def _look_at_clock(self) -> None:
        """Kills the process if its present call takes too long; otherwise looks again when that may be."""
        self._watch = None
        first = next(iter(self._calls.values()), None)
        if first is None:
            return
        rest_s = self._at_work_since_s + self._timeout_s - self._loop.time()
        if rest_s > 0:
            self._watch = self._loop.call_later(rest_s, self._look_at_clock)
            return
        self._give_up(first)
        self.close()

    def _give_up(self, result: asyncio.Future[Frame]) -> None:
        if not result.done():
            result.set_exception(TookTooLongError())


def _settle(result: asyncio.Future[Frame], frame: Frame) -> None:
    if result.done():  # its caller has gone
        return
    if frame.kind in (FrameKind.RESULT, FrameKind.READY):
        result.set_result(frame)
    elif frame.kind is FrameKind.DIED:
        result.set_exception(ProcessLostError(was_at_work=True))
    else:
        result.set_exception(_error(frame.content))


def _error(content: dict[str, Any]) -> MooringError:
    error = error_from_code(str(content["code"]), str(content["message"])[:1000])
    param = content["param"]
    error.param = None if param is None else str(param)
    return error
