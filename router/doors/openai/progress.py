"""Progress of a stream that has no token yet, in comments between its events, which other clients skip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson

from router.request.served_model import ServedModel

__all__ = ["PATIENCE_S", "PROGRESS_HEADER", "progress"]

PROGRESS_HEADER = "x-mooring-progress"
"""The header, with the value ``true``, by which a client asks for comments."""

PATIENCE_S = 0.25
"""The time that a stream has until its first token before it begins with comments: what is refused by then, or
served, still has its own status and headers."""

_LOOK_S = 0.1
_REPEAT_S = 1.0


async def progress(model: ServedModel, first: asyncio.Future[Any]) -> AsyncIterator[bytes]:
    """Yields a comment once a second, and whenever the model's whereabouts change, until ``first`` is done."""
    said, said_at_s = None, 0.0
    while not first.done():
        residency, reason = model.whereabouts()
        state = {"state": "waiting", "model": model.name, "residency": residency, "reason": reason}
        now_s = time.monotonic()
        if state != said or now_s - said_at_s >= _REPEAT_S:
            said, said_at_s = state, now_s
            yield b": " + orjson.dumps(state) + b"\n\n"
        await asyncio.wait({first}, timeout=_LOOK_S)
