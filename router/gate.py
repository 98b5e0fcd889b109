"""The gate before the dispatcher: counts who is inside and shuts for the server's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mooring.errors import ShuttingDownError
from router.request import ChoiceTokens, GenerationRequest, TokenSource, TokenStream

__all__ = ["Gate"]


class Gate:
    """A ``TokenSource`` in front of another. Once shut it refuses new requests; those inside go on."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens
        self._num_inside = 0
        self._shut = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def generate(self, request: GenerationRequest) -> TokenStream:
        if self._shut:
            raise ShuttingDownError(
                "The server is shutting down: send the request to another.", retry_after_s=5
            )
        self._enter()
        try:
            return _Counted(await self._tokens.generate(request), self)
        except BaseException:
            self.leave()
            raise

    def shut(self) -> None:
        """Refuses whoever comes from now on."""
        self._shut = True

    async def wait_empty(self, timeout_s: float) -> bool:
        """Waits until nobody is inside; False where some still are after ``timeout_s``."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _enter(self) -> None:
        self._num_inside += 1
        self._empty.clear()

    def leave(self) -> None:
        """One request less inside."""
        self._num_inside -= 1
        if self._num_inside == 0:
            self._empty.set()


class _Counted:
    """A stream that leaves the gate when it is closed."""

    def __init__(self, stream: TokenStream, gate: Gate) -> None:
        self._stream = stream
        self._gate: Gate | None = gate

    def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        return self._stream.__aiter__()

    def stop(self, index: int) -> None:
        self._stream.stop(index)

    async def aclose(self) -> None:
        gate, self._gate = self._gate, None
        try:
            await self._stream.aclose()
        finally:
            if gate is not None:
                gate.leave()
