"""The gate before the dispatcher: counts who is inside, shuts for the server's end, and clears the house."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from engines.api import ChoiceTokens
from mooring.errors import ShuttingDownError
from router.request.request import GenerationRequest, TokenSource, TokenStream

__all__ = ["Gate"]

_RETRY_S = 5.0  # a server that takes our place needs about as long


class Gate:
    """A ``TokenSource`` in front of another. Once shut it refuses new requests; those inside go on until
    they end or are cut off."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens
        self._num_inside = 0
        self._streams: set[_Counted] = set()
        self._shut = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def generate(self, request: GenerationRequest) -> TokenStream:
        if self._shut:
            raise _shutting_down()
        self._num_inside += 1
        self._empty.clear()
        try:
            stream = _Counted(await self._tokens.generate(request), self)
        except BaseException:
            self._leave()
            raise
        self._streams.add(stream)
        return stream

    def shut(self) -> None:
        """Refuses whoever comes from now on."""
        self._shut = True

    async def wait_empty(self, timeout_s: float) -> bool:
        """Waits until nobody is inside; False if somebody still is after ``timeout_s``."""
        if not self._empty.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self._empty.is_set()

    async def cut_off(self) -> None:
        """Ends every running stream with ``ShuttingDownError``; what they held is free on return."""
        await asyncio.gather(*(stream.cut_off() for stream in self._streams))

    def forget(self, stream: _Counted) -> None:
        """One request less inside."""
        self._streams.discard(stream)
        self._leave()

    def _leave(self) -> None:
        self._num_inside -= 1
        if self._num_inside == 0:
            self._empty.set()


class _Counted:
    """A stream that leaves the gate when it is closed."""

    def __init__(self, stream: TokenStream, gate: Gate) -> None:
        self.predicted_ttft_s = stream.predicted_ttft_s
        self._stream = stream
        self._tokens = aiter(stream)
        self._gate: Gate | None = gate
        self._cut_off = False

    def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        return self

    async def __anext__(self) -> list[ChoiceTokens]:
        try:
            return await anext(self._tokens)
        except StopAsyncIteration:
            if self._cut_off:
                raise _shutting_down() from None
            raise

    def stop(self, index: int) -> None:
        self._stream.stop(index)

    async def aclose(self) -> None:
        gate, self._gate = self._gate, None
        try:
            await self._stream.aclose()
        finally:
            if gate is not None:
                gate.forget(self)

    async def cut_off(self) -> None:
        """Ends it under its reader, who learns why."""
        self._cut_off = True
        await self._stream.aclose()


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("The server is shutting down: try again.", retry_after_s=_RETRY_S)
