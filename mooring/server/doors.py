"""The doors' listeners: uvicorn for HTTP and grpc.aio, both on the server's own event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import grpc.aio
import uvicorn

from mooring.config import TlsFiles
from mooring.errors import ConfigurationError
from mooring.server.acceptor import Acceptor
from mooring.server.connection_limits import ConnectionLimits
from mooring.server.door_config import DoorConfig, HttpLimits
from mooring.server.grpc_connections import GrpcConnections
from mooring.server.http_connection import HttpConnection
from mooring.server.socket_connection import SocketConnection
from mooring.server.tls import grpc_credentials, tls_context

__all__ = ["grpc_door", "http_door"]

_STOP_S = 5.0
_SILENCE_S = 60  # seconds of silence after which a client is asked whether it is still there


@asynccontextmanager
async def http_door(
    app: Any,
    host: str,
    port: int,
    limits: HttpLimits,
    connections: ConnectionLimits | None = None,
    tls: TlsFiles | None = None,
) -> AsyncIterator[str]:
    """Serves an ASGI application; yields its address, and at the end lets open answers finish for a while.

    Args:
        limits: limits of each connection.
        connections: limits of their number; None if there are none.
        tls: files for TLS; None if the door speaks plain HTTP.

    Raises:
        ConfigurationError: the address cannot be listened on, or the files cannot be used.
    """
    context = tls_context(tls) if tls is not None else None
    listener = _listen("HTTP", host, port)
    config = DoorConfig(
        app,
        limits,
        http=HttpConnection,
        ws=SocketConnection,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,  # the guard reads them, if they are to be believed
        timeout_graceful_shutdown=int(_STOP_S),
        ws_per_message_deflate=False,  # a chunk holds one token: compressing it costs more than it saves
    )
    config.load()
    server = _HttpServer(config, connections or ConnectionLimits(sys.maxsize, None), context)
    # A bound socket queues connections from now on, so the address is good before uvicorn has started.
    listener.listen(config.backlog)
    listener.setblocking(False)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    bound_host, bound_port = listener.getsockname()[:2]
    try:
        yield f"{'http' if tls is None else 'https'}://{_bracketed(bound_host)}:{bound_port}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def grpc_door(
    server: grpc.aio.Server,
    host: str,
    port: int,
    tls: TlsFiles | None = None,
    max_per_address: int | None = None,
) -> AsyncIterator[str]:
    """Runs a gRPC server; yields its target, and at the end lets open calls finish for a while.

    Args:
        max_per_address: most connections of one address at a time; None if there is no such limit.
        tls: files for TLS; None if the door speaks without.

    Raises:
        ConfigurationError: the address cannot be listened on, or the files cannot be used.
    """
    credentials = grpc_credentials(tls) if tls is not None else None
    if port:
        _listen("gRPC", host, port).close()  # gRPC itself does not say why it cannot listen
    address = f"{_bracketed(host)}:{port}"
    try:
        if credentials is None:
            bound_port = server.add_insecure_port(address)
        else:
            bound_port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(f"gRPC cannot listen on {address}: {error}") from error
    await server.start()
    watch = None
    if max_per_address is not None:
        watch = asyncio.create_task(
            GrpcConnections(bound_port, max_per_address).run(), name="grpc-connections"
        )
    try:
        yield f"{_bracketed(host)}:{bound_port}"
    finally:
        if watch is not None:
            watch.cancel()
        await server.stop(_STOP_S)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers, since the server's wiring decides when it ends, and with limits of
    connections."""

    config: DoorConfig
    servers: list[Any]

    def __init__(self, config: DoorConfig, limits: ConnectionLimits, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._limits = limits
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        make = partial(HttpConnection, self.config, server_state=self.server_state, app_state={})
        self.servers = [Acceptor(each, self._limits, self._tls, make) for each in sockets or ()]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(door: str, host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as stack:
            # IPPROTO_TCP is named because asyncio, unlike uvloop, turns delays of small writes off only then.
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit it: a client that vanished without a word is noticed.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_S)
            listener.bind((host, port))
            stack.pop_all()  # bound: the caller closes it
            return listener
    except OSError as error:
        raise ConfigurationError(f"{door} cannot listen on {host}:{port}: {error}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
