"""The descriptor channel: how host copies reach a worker.

A worker inherits one end of a ``socketpair(AF_UNIX, SOCK_SEQPACKET)``. Over it the server process sends
(key, descriptor) pairs with SCM_RIGHTS, and the worker says once that it serves. Either end notices the
other's death as end-of-file, which is how a worker learns that it is an orphan.

Weights never pass through a message: what is sent is the right to read a memfd, so a worker's death loses
device state only.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import OrderedDict
from collections.abc import Callable

from mooring.errors import InternalError, WorkerLostError

__all__ = ["DescriptorReceiver", "DescriptorSender", "open_channel"]

_MAX_KEY_BYTES = 512
_MAX_UNCLAIMED = 64  # of loads that were cancelled between their descriptor and their call
_READY = b"ready"


def open_channel() -> tuple[socket.socket, socket.socket]:
    """(server's end, worker's end), both non-blocking and closed on exec unless passed on by number."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def _until_writable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = loop.create_future()

    def resume() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(channel, resume)
    try:
        await writable
    finally:
        loop.remove_writer(channel)


class DescriptorSender:
    """The server's end: sends descriptors to one life of one worker."""

    def __init__(self, channel: socket.socket, worker_id: str) -> None:
        self._channel = channel
        self._worker_id = worker_id
        self._num_sent = 0

    async def send(self, key: str, descriptor: int) -> str:
        """Sends a duplicate of ``descriptor``; the caller keeps its own.

        Returns:
            the name under which the worker finds it: ``key`` made unique, so that a load which was
            cancelled half-way cannot take another's.

        Raises:
            WorkerLostError: the worker is gone.
        """
        self._num_sent += 1
        name = f"{key}#{self._num_sent}"
        payload = name.encode()
        if len(payload) > _MAX_KEY_BYTES:
            raise InternalError(
                f"the key of a host copy has {len(payload)} bytes; {_MAX_KEY_BYTES} is the most"
            )
        while True:
            try:
                socket.send_fds(self._channel, [payload], [descriptor])
                return name
            except BlockingIOError:
                await _until_writable(self._channel)
            except OSError as error:
                raise WorkerLostError(f"worker {self._worker_id} is gone: {error}") from error

    async def wait_ready(self) -> None:
        """Returns once the worker serves.

        Raises:
            WorkerLostError: it died before.
        """
        try:
            message = await asyncio.get_running_loop().sock_recv(self._channel, len(_READY))
        except OSError as error:
            raise WorkerLostError(f"worker {self._worker_id} is gone: {error}") from error
        if message != _READY:
            raise WorkerLostError(f"worker {self._worker_id} ended before it could serve")

    def close(self) -> None:
        self._channel.close()


class DescriptorReceiver:
    """The worker's end: keeps what has arrived until a load claims it.

    Args:
        channel: non-blocking; owned from here on.
        on_closed: called once, on the event loop, when the server process is gone.
    """

    def __init__(self, channel: socket.socket, on_closed: Callable[[], None]) -> None:
        self._channel = channel
        self._on_closed = on_closed
        self._unclaimed: OrderedDict[str, int] = OrderedDict()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def start(self) -> None:
        """Begins to listen on the running loop and tells the server that the worker serves."""
        asyncio.get_running_loop().add_reader(self._channel, self._receive)
        self._channel.send(_READY)

    async def claim(self, key: str, timeout_s: float) -> int:
        """The descriptor named ``key``; the caller owns it.

        Raises:
            InternalError: it did not arrive in time.
        """
        if key not in self._unclaimed:
            arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[key] = arrival
            try:
                async with asyncio.timeout(timeout_s):
                    await arrival
            except TimeoutError:
                raise InternalError(f"the host copy {key} did not arrive within {timeout_s:g} s") from None
            finally:
                del self._waiting[key]
        return self._unclaimed.pop(key)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        while self._unclaimed:
            os.close(self._unclaimed.popitem()[1])

    def _receive(self) -> None:
        try:
            payload, descriptors, _, _ = socket.recv_fds(self._channel, _MAX_KEY_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            payload, descriptors = b"", []
        if not payload:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._on_closed()
            return
        for descriptor in descriptors:
            self._keep(payload.decode(), descriptor)

    def _keep(self, key: str, descriptor: int) -> None:
        self._unclaimed[key] = descriptor
        if len(self._unclaimed) > _MAX_UNCLAIMED:
            os.close(self._unclaimed.popitem(last=False)[1])
        arrival = self._waiting.get(key)
        if arrival is not None and not arrival.done():
            arrival.set_result(None)
