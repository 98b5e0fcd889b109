"""The number of the gRPC port's connections from one address."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mooring.server.connection_limits import num_open_files
from router.request.network import network_of

__all__ = ["GrpcConnections"]

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5

_Peer = tuple[Any, ...]  # as ``getpeername`` has it


class GrpcConnections:
    """Closes connections of the gRPC port that one address has too many of, the latest first.

    gRPC accepts connections by itself and asks nobody, and tells of one only when a call comes. But its sockets are
    among the files of this process; one that is shut down there ends for gRPC as if the client had hung up.

    Args:
        port: the gRPC port.
        max_per_address: most connections of one address at a time.
    """

    def __init__(self, port: int, max_per_address: int) -> None:
        self._port = port
        self._max_per_address = max_per_address
        self._kept: set[_Peer] = set()

    async def run(self) -> None:
        """Looks twice a second until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "grpc-connections") as thread:  # thousands of files take 30 ms
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                try:
                    if num_open_files() > self._max_per_address:
                        await loop.run_in_executor(thread, self._look)
                except OSError as error:  # no descriptor is left for the look itself
                    _log.warning("the connections of the gRPC port cannot be looked at now: %s", error)

    def _look(self) -> None:
        found = {peer: fd for fd in _open_files() if (peer := self._client_of(fd)) is not None}
        by_network: Counter[str] = Counter()
        kept = set()
        for peer in sorted(found, key=lambda peer: (peer not in self._kept, found[peer])):
            network = network_of(peer[0])
            by_network[network] += 1
            if by_network[network] <= self._max_per_address:
                kept.add(peer)
            else:
                self._hang_up(found[peer], peer)
        self._kept = kept
        for network, number in by_network.items():
            if number > self._max_per_address:
                _log.warning(
                    "%s has %d connections to the gRPC port, and may have %d (max_connections_per_address): closed "
                    "those that came last",
                    network,
                    number,
                    self._max_per_address,
                )

    def _client_of(self, fd: int) -> _Peer | None:
        """The other end of a connection of the port; None if the file is none, or is closed by now."""
        try:
            connection = socket.socket(fileno=fd)
        except OSError:
            return None
        try:
            is_internet = connection.family in (socket.AF_INET, socket.AF_INET6)
            is_ours = is_internet and connection.getsockname()[1] == self._port
            return tuple(connection.getpeername()) if is_ours else None
        except OSError:
            return None
        finally:
            connection.detach()  # it is gRPC's

    def _hang_up(self, fd: int, peer: _Peer) -> None:
        try:
            own = os.dup(fd)  # so that it stays the same one while it is looked at again
        except OSError:
            return
        try:
            if self._client_of(own) == peer:
                connection = socket.socket(fileno=own)
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                finally:
                    connection.detach()
        except OSError:
            pass  # the client has gone already
        finally:
            os.close(own)


def _open_files() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]
