"""One tab's WebSocket."""

from __future__ import annotations

import asyncio
import contextlib

import orjson
from starlette.websockets import WebSocket, WebSocketDisconnect

from admin_ui.auth import Session, Sessions
from admin_ui.live import LiveFeed, Tab

__all__ = ["run_tab"]

_LOOK_S = 5.0  # how often it is seen whether the session still holds
_SESSION_ENDED = 4401
_NONSENSE = 1003


async def run_tab(socket: WebSocket, live: LiveFeed, sessions: Sessions, session: Session) -> None:
    """Sends a tab the live feed until it goes, or its session ends.

    A tab may send ``{"type": "resync"}``, after which it gets a snapshot, and ``{"type": "active"}`` while somebody
    uses it: the session counts as used then. An open tab alone does not keep a session.
    """
    await socket.accept()
    tab = live.join(session.admin_key)
    sending = asyncio.create_task(_send(socket, live, tab, sessions, session))
    try:
        while True:
            match orjson.loads(await socket.receive_text()):
                case {"type": "resync"}:
                    live.resync(tab)
                case {"type": "active"} if sessions.is_open(session):
                    sessions.note_use(session)
    except (WebSocketDisconnect, RuntimeError):  # it has gone, or has been closed
        pass
    except (KeyError, orjson.JSONDecodeError):
        await socket.close(_NONSENSE)
    finally:
        live.leave(tab)
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await sending


async def _send(socket: WebSocket, live: LiveFeed, tab: Tab, sessions: Sessions, session: Session) -> None:
    loop = asyncio.get_running_loop()
    looked_at_s = loop.time()
    while True:
        try:
            async with asyncio.timeout(_LOOK_S):
                message = await tab.take()
        except TimeoutError:
            message = ""
        if loop.time() - looked_at_s >= _LOOK_S or not message:
            looked_at_s = loop.time()
            if not sessions.is_open(session):
                await socket.close(_SESSION_ENDED)
                return
        if message is None:
            live.resync(tab)
        elif message:
            await socket.send_text(message)
