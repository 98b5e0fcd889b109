"""Runs the web UI: listens, and ends in order."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from admin_ui.app import AdminUi
from admin_ui.config import UiConfig
from admin_ui.upstream import server_client
from mooring.errors import ConfigurationError

__all__ = ["serve"]

_STOP_S = 2
_BACKLOG = 128


async def serve(config: UiConfig, on_start: Callable[[AdminUi, str], None] = lambda ui, url: None) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        on_start: called with the UI and its address once browsers can reach it.

    Raises:
        ConfigurationError: it cannot listen, or a certificate cannot be used.
    """
    client = server_client(config)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(config.host, config.port))
        port = listener.getsockname()[1]
        config = dataclasses.replace(config, port=port)
        ui = AdminUi.make(config, client)
        sockets = [listener]
        if config.usable_socket is not None:
            sockets.append(stack.enter_context(_listen_on_socket(config.usable_socket)))
        server = uvicorn.Server(_settings(config, ui))
        for each in sockets:
            each.listen(_BACKLOG)
        on_start(ui, config.url)
        try:
            await server.serve(sockets=sockets)
        finally:
            await ui.live.close()
            await client.aclose()


def _settings(config: UiConfig, ui: AdminUi) -> uvicorn.Config:
    """Raises ConfigurationError if a certificate cannot be used."""
    settings = uvicorn.Config(
        ui.app,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,  # which believes what a client says of itself
        server_header=False,
        ws_per_message_deflate=False,  # small messages, and the same for all tabs: packing costs more
        timeout_graceful_shutdown=_STOP_S,
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
    )
    try:
        settings.load()
    except OSError as error:  # also of ssl
        raise ConfigurationError(f"{config.tls_certificate} and its key cannot be used: {error}") from error
    return settings


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"the web UI cannot listen on {host}:{port} ({error.strerror}): give it another port"
            ) from error
        yield listener


@contextmanager
def _listen_on_socket(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that only this user can open."""
    path.unlink(missing_ok=True)  # of a process that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
