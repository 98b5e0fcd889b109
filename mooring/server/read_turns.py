"""Connections whose bodies are wanted take turns, so that many large ones leave time between them for others."""

from __future__ import annotations

import asyncio
from collections import deque

from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["ReadTurns", "TurnedFlow"]

_AT_A_TIME = 4  # connections that begin to read again in one turn of the event loop


class ReadTurns:
    """Lets connections read again, a few in each turn of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[TurnedFlow] = deque()
        self._is_due = False

    def ask(self, flow: TurnedFlow) -> None:
        self._waiting.append(flow)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        for _ in range(min(_AT_A_TIME, len(self._waiting))):
            self._waiting.popleft().take_turn()
        self._is_due = bool(self._waiting)
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._next)


class TurnedFlow(FlowControl):
    """uvicorn's control of one connection's reading, which begins again in its turn."""

    def __init__(self, transport: asyncio.Transport, turns: ReadTurns) -> None:
        super().__init__(transport)
        self._turns = turns
        self._has_asked = False

    def pause_reading(self) -> None:
        if self._has_asked:
            self.read_paused = True  # and the transport still is
        else:
            super().pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            if not self._has_asked:
                self._has_asked = True
                self._turns.ask(self)

    def take_turn(self) -> None:
        """Reads again, unless that was paused meanwhile or the connection ends."""
        self._has_asked = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()
