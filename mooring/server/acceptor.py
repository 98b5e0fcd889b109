"""The acceptance of connections, within limits."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial

from mooring.errors import MooringError, OverloadedError, RateLimitError
from mooring.server.bounded_reads import BoundedReads
from mooring.server.connection_limits import ConnectionLimits
from mooring.server.door_config import answer_of
from mooring.server.http_connection import HttpConnection
from router.request.network import network_of

__all__ = ["Acceptor"]

_log = logging.getLogger(__name__)

_AT_A_TIME = 16  # connections taken before others get their turn
_PAUSE_S = 0.5  # after the kernel had no descriptor for a connection
_HANDSHAKE_S = 10.0
_SHUTDOWN_S = 5.0  # for the client's part of the end of TLS


class Acceptor:
    """Takes connections from a listening socket, and refuses those that are too many: over plain HTTP with an answer,
    over TLS by closing, since an answer would cost a handshake.

    Args:
        listener: listening, non-blocking.
        limits: limits of connections.
        tls: TLS of the connections; None for plain HTTP.
        make: makes the protocol of a connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        limits: ConnectionLimits,
        tls: ssl.SSLContext | None,
        make: Callable[[], HttpConnection],
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._tls = tls
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._num_open = 0
        self._by_network: Counter[str] = Counter()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._start()

    def close(self) -> None:
        """Takes no more connections; those that are open stay."""
        self._stop()
        if self._pause is not None:
            self._pause.cancel()
        self._listener.close()

    async def wait_closed(self) -> None:
        """Waits until no connection is being opened."""
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _start(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _stop(self) -> None:
        self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        for _ in range(_AT_A_TIME):
            try:
                client, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("no connection can be accepted for now: %s", error)
                self._stop()
                self._pause = self._loop.call_later(_PAUSE_S, self._start)
                return
            self._take(client, network_of(address[0]))

    def _take(self, client: socket.socket, network: str) -> None:
        client.setblocking(False)
        refusal = self._refusal(network)
        if refusal is not None:
            self._refuse(client, refusal)
            return
        self._num_open += 1
        self._by_network[network] += 1
        task = self._loop.create_task(self._open(client, network))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _refusal(self, network: str) -> MooringError | None:
        if self._num_open >= self._limits.max_connections:
            return OverloadedError(
                "The server has as many connections as it may (max_connections): try again."
            )
        most = self._limits.max_per_address
        if most is not None and self._by_network[network] >= most:
            return RateLimitError(
                f"Your address may have at most {most} connections at a time (max_connections_per_address)."
            )
        return None

    def _refuse(self, client: socket.socket, refusal: MooringError) -> None:
        with client:
            if self._tls is None:
                try:
                    client.send(answer_of(refusal))
                    client.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # it has gone already

    async def _open(self, client: socket.socket, network: str) -> None:
        protocol = self._make()
        protocol.on_lost = partial(self._lost, network)
        timeouts = (
            {}
            if self._tls is None
            else {"ssl_handshake_timeout": _HANDSHAKE_S, "ssl_shutdown_timeout": _SHUTDOWN_S}
        )
        try:
            await self._loop.connect_accepted_socket(
                lambda: BoundedReads(protocol), client, ssl=self._tls, **timeouts
            )
        except OSError as error:  # as those of TLS are, too
            _log.debug("a connection did not open: %r", error)
        finally:
            if not protocol.has_begun:  # so it will not be told of its end either
                client.close()
                self._lost(network)

    def _lost(self, network: str) -> None:
        self._num_open -= 1
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]
