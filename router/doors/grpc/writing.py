"""Sends the messages of a call whose client may not read."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

import grpc
from google.protobuf.message import Message

from router.doors.grpc.errors import Context
from router.request.reader_watch import SlowReaderError

__all__ = ["MessageWriter"]

_PART_BYTES = 65_536  # gRPC does not tell how much of a message was taken: a large one has more time


class MessageWriter:
    """Sends messages one after the other, each within its time. A context manager, for the length of a call.

    One timer serves many messages: a timer for each would cost about a tenth of what sending it does.

    Args:
        context: the call.
        max_stall_s: seconds that a message may wait, for each 64 KiB of it that were begun.
    """

    def __init__(self, context: Context, max_stall_s: float) -> None:
        self._context = context
        self._max_stall_s = max_stall_s
        self._loop = asyncio.get_running_loop()
        self._late_at_s = math.inf  # when the present message is late
        self._is_late = False
        self._task: asyncio.Task[object] | None = None  # that sends it
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> MessageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def write(self, message: Message) -> None:
        """Sends a message; waits until gRPC takes it, which it does as the client reads those before it.

        Raises:
            SlowReaderError: the client did not read. The call can only be ended then, and the status reaches the
                client when it reads on.
        """
        task = self._task = asyncio.current_task()
        assert task is not None
        num_cancels = task.cancelling()
        self._late_at_s = self._loop.time() + self._max_stall_s * (1 + message.ByteSize() // _PART_BYTES)
        if self._timer is None:
            self._look_later()
        try:
            await self._context.write(message)
        except asyncio.CancelledError as error:
            if self._is_late and task.uncancel() <= num_cancels:  # nobody else ended it
                raise SlowReaderError(self._max_stall_s) from error
            raise
        except grpc.aio.InternalError as error:
            # The client has gone, and gRPC is about to cancel the call for it.
            raise asyncio.CancelledError from error
        finally:
            self._late_at_s = math.inf

    def _look_later(self) -> None:
        # Never later than the next message could be late, if the present one goes.
        at_s = min(self._late_at_s, self._loop.time() + self._max_stall_s)
        self._timer = self._loop.call_at(at_s, self._look)

    def _look(self) -> None:
        """Ends the present message if it is late; otherwise looks again later, as long as there is one."""
        self._timer = None
        if self._late_at_s <= self._loop.time():
            self._is_late = True
            assert self._task is not None
            self._task.cancel()
        elif self._late_at_s < math.inf:
            self._look_later()
