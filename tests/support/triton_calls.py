"""Triton's clients called method by method: what the tests of its gRPC and of its HTTP clients share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from tritonclient.grpc.auth import BasicAuth

from support.running_server import RunningServer

__all__ = ["ClientCalls", "aio_call", "methods", "sync_call"]

Call = Callable[..., Any]


class ClientCalls:
    """One method for each of the client's, named after it. ``call`` makes the client's call, whichever of
    the two clients it is."""

    def __init__(self, server: RunningServer, call: Call) -> None:
        self.call = call
        self.admin = {"authorization": f"Bearer {server.admin_key}"}

    # Of the client alone: they set headers on the calls that follow.

    def register_plugin(self) -> None:
        self.call("register_plugin", BasicAuth("name", "password"))
        assert self.call("is_server_live")
        self.call("unregister_plugin")

    def plugin(self) -> None:
        assert self.call("plugin") is None

    def unregister_plugin(self) -> None:
        self.call("register_plugin", BasicAuth("name", "password"))
        self.call("unregister_plugin")
        assert self.call("plugin") is None

    def close(self) -> None:
        self.call("close")


def sync_call(client: Any) -> Call:
    """Calls a method of the sync client by its name."""
    return lambda name, *arguments, **named: getattr(client, name)(*arguments, **named)


def aio_call(client: Any, loop: asyncio.AbstractEventLoop) -> Call:
    """Calls a method of the aio client by its name, and waits for what it gives."""

    def call(name: str, *arguments: Any, **named: Any) -> Any:
        made = getattr(client, name)(*arguments, **named)
        return loop.run_until_complete(asyncio.wait_for(made, 30)) if inspect.isawaitable(made) else made

    return call


def methods(owner: type) -> list[str]:
    """Names of the public methods of a class."""
    return [name for name, _ in inspect.getmembers(owner, callable) if not name.startswith("_")]
