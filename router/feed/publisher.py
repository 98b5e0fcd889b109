"""Publishes the state of the server as it changes: made once, shared by all readers.

It computes only while somebody reads, or when it is asked. A publication has a number, one more than the last; what
was published is a frame of server-sent events in a log of bounded length that all readers go along. One that falls
behind its beginning is given a new snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from mooring.merge_patch import Document, merge_patch

__all__ = ["Publication", "Publisher"]

logger = logging.getLogger(__name__)

INTERVAL_S = 0.25
HURRIED_S = 0.05  # from a change that is to be seen at once; what comes with it is published with it
KEEP_ALIVE = b": nothing new\n\n"
KEEP_ALIVE_S = 10.0
NUM_KEPT = 64
"""So many of the last publications can be asked for, and so many frames may a reader be behind."""


@dataclass(frozen=True, slots=True)
class Publication:
    """The state under its number. ``epoch`` is another one in each start of the server."""

    seq: int
    epoch: str
    state: Document

    def as_json(self) -> bytes:
        return orjson.dumps({"seq": self.seq, "epoch": self.epoch, "state": self.state})


class Publisher:
    """The live feed of a server; belongs to its event loop.

    Args:
        read: makes the state of now, without ``at``; it must be quick.
        clock: seconds of the Unix epoch.

    Attributes:
        epoch: a random name of this start.
    """

    def __init__(self, read: Callable[[], Document], clock: Callable[[], float] = time.time) -> None:
        self.epoch = secrets.token_hex(8)
        self._read = read
        self._clock = clock
        self._seq = 0
        self._state: Document = {}
        self._devices: OrderedDict[int, Mapping[str, Any]] = OrderedDict()
        self._frames: deque[bytes] = deque(maxlen=NUM_KEPT)
        self._num_frames = 0  # ever appended
        self._appended = asyncio.Event()
        self._hurried = asyncio.Event()
        self._work: list[Callable[[], Coroutine[Any, Any, None]]] = [self._publish_repeatedly]
        self._tasks: list[asyncio.Task[None]] = []
        self._num_readers = 0
        self._shut = False

    def while_read(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Adds work that runs as a task whenever, and as long as, somebody reads; add it before anybody does."""
        self._work.append(work)

    def hurry(self) -> None:
        """Something has changed that readers are to see at once. Does nothing if nobody reads."""
        if self._num_readers:
            self._hurried.set()

    def shut(self) -> None:
        """Ends every stream."""
        self._shut = True
        self._tell()

    def publish(self) -> Publication:
        """Publishes the state of now if it is another one than the last; returns what is published then."""
        state = self._read()
        state["at"] = self._state.get("at", 0.0)
        patch = merge_patch(self._state, state)
        if patch or not self._seq:
            state["at"] = patch["at"] = round(self._clock(), 3)
            self._seq, self._state = self._seq + 1, state
            self._devices[self._seq] = state["devices"]
            if len(self._devices) > NUM_KEPT:
                self._devices.popitem(last=False)
            data = orjson.dumps({"seq": self._seq, "patch": patch})
            self._append(_frame("patch", data, self._seq))
        return Publication(self._seq, self.epoch, self._state)

    def devices_at(self, seq: int) -> Mapping[str, Any] | None:
        """The devices as they were published under a number, one of the last 64; None for any other."""
        return self._devices.get(seq)

    def tell_events(self, events_json: Iterable[bytes]) -> None:
        """Tells readers of events beside the state; those of one call count as one frame."""
        self._append(b"".join(_frame("event", each) for each in events_json))

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Frames of server-sent events for one reader: a snapshot, then what is published and told, without a gap.
        They end where nothing more can be published."""
        self._enter()
        tasks = self._tasks
        try:
            place, snapshot = self._snapshot()
            yield snapshot
            while not self._shut and not any(map(_error_of, tasks)):
                num_new = self._num_frames - place
                if num_new > len(self._frames):
                    place, snapshot = self._snapshot()
                    yield snapshot
                elif num_new:
                    place = self._num_frames
                    yield b"".join(list(self._frames)[-num_new:])
                elif not await self._wait(self._appended, KEEP_ALIVE_S):
                    yield KEEP_ALIVE
        finally:
            self._leave()

    def _snapshot(self) -> tuple[int, bytes]:
        """The place from which a reader goes on who has this snapshot, and the frame."""
        published = self.publish()
        return self._num_frames, _frame("snapshot", published.as_json(), published.seq)

    def _append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._num_frames += 1
        self._tell()

    def _tell(self) -> None:
        """Wakes all who wait; each that waits from now on waits for the next time."""
        appended, self._appended = self._appended, asyncio.Event()
        appended.set()
        if self._shut:
            self._appended.set()

    def _enter(self) -> None:
        self._num_readers += 1
        if self._num_readers == 1:
            self._tasks = [asyncio.create_task(work(), name="live-feed") for work in self._work]
            for task in self._tasks:
                task.add_done_callback(self._note_end)

    def _leave(self) -> None:
        self._num_readers -= 1
        if not self._num_readers:
            for task in self._tasks:
                task.cancel()
            self._tasks = []

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Ends the streams with the work that makes them: only a bug of ours ends that, and it must be seen."""
        if (error := _error_of(task)) is not None:
            logger.error("the live feed ends", exc_info=error)
            self._tell()

    async def _publish_repeatedly(self) -> None:
        while True:
            if await self._wait(self._hurried, INTERVAL_S):
                await asyncio.sleep(HURRIED_S)
            self._hurried.clear()
            self.publish()

    async def _wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Whether it was set in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout_s)
        return event.is_set()


def _frame(kind: str, data: bytes, seq: int | None = None) -> bytes:
    number = b"" if seq is None else b"id: %d\n" % seq
    return b"%bevent: %b\ndata: %b\n\n" % (number, kind.encode(), data)


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    """The error that ended a task; None if none did, or it runs."""
    return task.exception() if task.done() and not task.cancelled() else None
