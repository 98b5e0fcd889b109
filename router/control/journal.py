"""Keeps the memory manager's events: in the log at once, in the registry in batches, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

from memory_manager.fleet.events import Event, EventKind
from model_registry.records import EventRecord, NewEvent
from model_registry.registry import Registry
from mooring.errors import InvalidRequestError, MooringError

__all__ = ["Journal", "JournalConfig"]

logger = logging.getLogger(__name__)

_MAX_REASON_CHARS = 2000
_LEVELS = {
    EventKind.FAILURE: logging.WARNING,
    EventKind.REFUSE: logging.WARNING,
    EventKind.KV_LEASE: logging.DEBUG,
}


@dataclasses.dataclass(frozen=True, slots=True)
class JournalConfig:
    """Settings of the journal.

    Attributes:
        max_kept: most rows in the registry; beyond it the oldest go.
        flush_s: seconds between writes of new events.
        max_pending: events that may wait for a database that does not answer. At twice as many, or when a
            write has failed, the oldest beyond this number are lost, and the log says how many.
        max_flush_s: longest pause between attempts while the database does not answer.
    """

    max_kept: int
    flush_s: float = 0.25
    max_pending: int = 10_000
    max_flush_s: float = 5.0


class Journal:
    """Takes events from the manager's event loop and gives them to readers.

    Refusals of one deployment for one reason that come between two writes are kept as one event, whose
    ``num_refused`` counts them, since a full queue may refuse thousands a second.

    Args:
        offset_s: seconds from the manager's clock to the Unix epoch.
    """

    def __init__(
        self,
        registry: Registry,
        config: JournalConfig,
        offset_s: Callable[[], float] = lambda: time.time() - time.monotonic(),
    ) -> None:
        self._registry = registry
        self._config = config
        self._offset_s = offset_s
        self._pending: list[NewEvent] = []
        self._refusals: dict[tuple[str | None, object], int] = {}  # index in ``_pending`` of each refusal
        self._writing = asyncio.Lock()
        self._writes: set[asyncio.Task[bool]] = set()
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._shut = False

    def start(self) -> None:
        """Begins to write; ``stop`` ends it."""
        self._task = asyncio.create_task(self._run(), name="journal")

    async def stop(self) -> None:
        """Writes the remaining events and ends."""
        self.shut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not await self._flush():
            logger.warning("%d events are lost: the registry does not answer", len(self._pending))

    def shut(self) -> None:
        """Ends every ``wait``."""
        self._shut = True
        self._tell()

    def note(self, event: Event) -> None:
        """Takes one event. Never blocks or raises."""
        logger.log(_LEVELS.get(event.kind, logging.INFO), "%s", _line(event))
        new = NewEvent(
            at_s=event.at_s + self._offset_s(),
            kind=event.kind.value,
            deployment=event.deployment,
            replica_id=event.replica_id,
            worker_id=event.worker_id,
            device=event.device,
            reason=_storable(event.reason),
            figures=event.figures,
            detail=event.detail,
        )
        if event.kind is EventKind.REFUSE and self._joins_another(new):
            return
        self._pending.append(new)
        if len(self._pending) >= 2 * self._config.max_pending:
            self._drop_oldest()

    async def events(
        self,
        limit: int,
        *,
        before_id: int | None = None,
        after_id: int | None = None,
        deployment: str | None = None,
        kinds: Sequence[str] = (),
        oldest_first: bool = False,
    ) -> list[EventRecord]:
        """Lists events, as ``Registry.list_events`` does; events noted before this call are among them."""
        await self._flush()
        return await asyncio.to_thread(
            self._registry.list_events,
            limit,
            before_id=before_id,
            after_id=after_id,
            deployment=deployment,
            kinds=kinds,
            oldest_first=oldest_first,
        )

    async def newest_id(self) -> int:
        """The newest id of the events noted before this call; 0 if there is none."""
        await self._flush()
        return await asyncio.to_thread(self._registry.newest_event_id)

    async def wait(self, timeout_s: float) -> bool:
        """Waits until events were written, or for ``timeout_s``; False once ``shut`` was called."""
        if not self._shut:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._written.wait(), timeout_s)
        return not self._shut

    def _joins_another(self, new: NewEvent) -> bool:
        key = (new.deployment, new.figures.get("code"))
        place = self._refusals.setdefault(key, len(self._pending))
        if place == len(self._pending):
            return False
        before = self._pending[place]
        total = before.figures["num_refused"] + new.figures["num_refused"]
        self._pending[place] = dataclasses.replace(before, figures={**new.figures, "num_refused": total})
        return True

    async def _run(self) -> None:
        pause_s = self._config.flush_s
        while True:
            await asyncio.sleep(pause_s)
            done = await self._flush()
            pause_s = self._config.flush_s if done else min(2 * pause_s, self._config.max_flush_s)

    async def _flush(self) -> bool:
        """Writes the pending events; returns False if the registry did not take them."""
        # In a task of its own: the caller may be cancelled, and events taken out must be written or put back.
        write = asyncio.create_task(self._write())
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def _write(self) -> bool:
        async with self._writing:
            batch, self._pending, self._refusals = self._pending, [], {}
            if not batch:
                return True
            try:
                await asyncio.to_thread(self._registry.add_events, batch, self._config.max_kept)
            except InvalidRequestError as error:
                # Another attempt would fail too, and hold up all later events.
                logger.error("%d events are lost: %s", len(batch), error.message)
            except MooringError:  # the registry has logged why
                self._pending, self._refusals = batch + self._pending, {}
                self._drop_oldest()
                return False
        self._tell()
        return True

    def _drop_oldest(self) -> None:
        num_lost = len(self._pending) - self._config.max_pending
        if num_lost > 0:
            logger.warning("%d events are lost: the registry does not answer", num_lost)
            self._pending, self._refusals = self._pending[num_lost:], {}

    def _tell(self) -> None:
        written, self._written = self._written, asyncio.Event()
        written.set()
        if self._shut:
            self._written.set()


def _storable(text: str) -> str:
    """A text without characters that no database takes: NUL, halves of surrogate pairs (undecodable file
    names)."""
    return text[:_MAX_REASON_CHARS].replace("\0", "").encode(errors="replace").decode()


def _line(event: Event) -> str:
    about = event.replica_id or event.deployment or event.worker_id or event.device or "server"
    figures = " ".join(f"{name}={_short(value)}" for name, value in event.figures.items())
    line = f"{event.kind.value} {about}: {event.reason}" + (f" [{figures}]" if figures else "")
    # A log in UTF-8 takes no halves of surrogate pairs.
    return line.encode(errors="backslashreplace").decode()


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
