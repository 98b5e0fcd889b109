"""The live feed: one reader of the server's stream for all tabs, and what each tab is sent of it.

The reader runs while a tab is open, and some seconds longer. It keeps the state, so that a tab that comes, or has
missed something, gets a snapshot of its own and the server is asked nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import httpx
import orjson

from mooring.merge_patch import patched

__all__ = ["LiveFeed", "Tab"]

logger = logging.getLogger(__name__)

_MAX_WAITING = 128  # messages; a tab that is further behind is sent a snapshot instead
_SILENCE_S = 30.0  # the server says something every 10 s
_LINGER_S = 5.0  # so that a page that is loaded again finds the reader running
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


class Tab:
    """The messages that wait to be sent to one tab.

    Args:
        admin_key: the key with which its session logged in.
    """

    def __init__(self, admin_key: str) -> None:
        self.admin_key = admin_key
        self._waiting: deque[str] = deque()
        self._is_ready = asyncio.Event()
        self.is_behind = False

    def put(self, message: str) -> None:
        """Adds a message. If too many wait, they go, and the tab counts as behind."""
        if self.is_behind:
            return
        self._waiting.append(message)
        if len(self._waiting) > _MAX_WAITING:
            self._waiting.clear()
            self.is_behind = True
        self._is_ready.set()

    def start_over(self, *messages: str) -> None:
        """Puts a snapshot in the place of all that waits, or what else there is to say."""
        self._waiting.clear()
        self.is_behind = False
        for each in messages:
            self.put(each)

    async def take(self) -> str | None:
        """The next message; None if the tab is behind and has to be sent a snapshot."""
        while not self._waiting:
            if self.is_behind:
                return None
            self._is_ready.clear()
            await self._is_ready.wait()
        return self._waiting.popleft()


class LiveFeed:
    """Reads the server's stream while there are tabs.

    Args:
        client: the way to the server.
        on_refused: called with a key that the server takes no longer.
    """

    def __init__(self, client: httpx.AsyncClient, on_refused: Callable[[str], None]) -> None:
        self._client = client
        self._on_refused = on_refused
        self._tabs: set[Tab] = set()
        self._task: asyncio.Task[None] | None = None
        self._state: Any = None
        self._seq = 0
        self._epoch = ""
        self._trouble = ""
        self._left_s = 0.0

    def join(self, admin_key: str) -> Tab:
        """Adds a tab, which is sent the state if it is known, and starts the reader if need be."""
        tab = Tab(admin_key)
        self._tabs.add(tab)
        self.resync(tab)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="live-feed")
        return tab

    def leave(self, tab: Tab) -> None:
        self._tabs.discard(tab)
        self._left_s = time.monotonic()

    def resync(self, tab: Tab) -> None:
        """Sends a tab the whole state, in place of all that waits for it."""
        known = [self._snapshot()] if self._state is not None else []
        tab.start_over(*known, *([self._trouble] if self._trouble else []))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._tabs:
            key = next(iter(self._tabs)).admin_key
            try:
                reason = await self._read(key)
            except httpx.HTTPError as error:
                reason = f"no server answers ({type(error).__name__})"
            except (ValueError, TypeError, KeyError):
                logger.exception("the server's live feed is not as expected")
                reason = "the server's live feed cannot be read"
            if not self._tabs:
                break
            if not self._trouble:  # it was read for a while
                pause_s = _FIRST_PAUSE_S
            self._tell_trouble(reason)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._state, self._trouble = None, ""  # nobody keeps it up to date

    def _is_left(self) -> bool:
        return not self._tabs and time.monotonic() - self._left_s >= _LINGER_S

    async def _read(self, key: str) -> str:
        """Reads one stream to its end, or until nobody is left; returns why it ended."""
        timeout = httpx.Timeout(_SILENCE_S, connect=5.0)
        headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
        async with self._client.stream("GET", "/admin/v1/live", headers=headers, timeout=timeout) as answer:
            if answer.status_code in (401, 403):
                self._on_refused(key)
                self._tabs = {each for each in self._tabs if each.admin_key != key}
                return "the server takes the admin key no longer"
            if answer.is_error:
                return f"the server answered {answer.status_code}"
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    if not self._take(name, line[6:]):
                        return "the live feed skipped something"
                elif not line and self._is_left():
                    return "nobody listens"
        return "the server ended the live feed"

    def _take(self, name: str, text: str) -> bool:
        """Takes an event of the stream; False if one is missing before it."""
        if name == "snapshot":
            told = orjson.loads(text)
            self._state, self._seq, self._epoch = told["state"], told["seq"], told["epoch"]
            self._trouble = ""
            snapshot = self._snapshot()
            for tab in self._tabs:
                tab.start_over(snapshot)
        elif name == "patch":
            told = orjson.loads(text)
            if told["seq"] != self._seq + 1:
                return False
            self._state, self._seq = patched(self._state, told["patch"]), told["seq"]
            self._send('{"type":"patch",' + text[1:])
        elif name == "event":
            self._send('{"type":"event","event":' + text + "}")
        return True

    def _snapshot(self) -> str:
        body = {"type": "snapshot", "seq": self._seq, "epoch": self._epoch, "state": self._state}
        return orjson.dumps(body).decode()

    def _tell_trouble(self, reason: str) -> None:
        self._trouble = orjson.dumps({"type": "trouble", "message": reason}).decode()
        self._send(self._trouble)

    def _send(self, message: str) -> None:
        for tab in self._tabs:
            tab.put(message)
