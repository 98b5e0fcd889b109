"""The front of the gRPC port: who calls is asked before a byte of a message is read, and what fails ends its own
call with a status."""

from __future__ import annotations

import enum
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc

from mooring.errors import AuthenticationError, InternalError, MooringError, status_of
from router.doors.grpc.errors import Context, abort, metadata_of
from router.doors.grpc.limits import GrpcLimits
from router.doors.grpc.receiving import Receiver
from router.doors.grpc.writing import MessageWriter
from router.services import RouterServices
from router.tenancy.keys import api_key_of, check_admin_key
from router.tenancy.tenant import Tenant

__all__ = ["CallGuard", "Key", "caller", "caller_now"]

_log = logging.getLogger(__name__)
_CALLER: ContextVar[Tenant] = ContextVar("caller")
_CALLER_NOW: ContextVar[Callable[[], Awaitable[Tenant]]] = ContextVar("caller_now")


class Key(enum.Enum):
    """The key that a call needs."""

    NONE = "none"
    TENANT = "tenant"
    ADMIN = "admin"


def caller() -> Tenant:
    """The tenant whose call runs, if the call needs a tenant's key."""
    return _CALLER.get()


async def caller_now() -> Tenant:
    """The tenant whose call runs, whose key is looked at again: a call of many messages may outlive it.

    Raises:
        AuthenticationError: the key was revoked meanwhile.
    """
    return await _CALLER_NOW.get()()


class CallGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Stands before every call of a server: checks its key, reads its message, holds the message's bytes as in
    flight until the call ends, and turns errors into the call's status.

    gRPC by itself reads the message of a call before anybody is asked, unless the call may send several. So all
    calls are served as such.

    Args:
        services: the tenants, and what they have in flight.
        admin_key: the key of calls that need ``Key.ADMIN``.
        keys: the key that a call needs, by its path; others need a tenant's.
        limits: bounds on messages.
    """

    def __init__(
        self, services: RouterServices, admin_key: str, keys: Mapping[str, Key], limits: GrpcLimits
    ) -> None:
        self._services = services
        self._admin_key = admin_key
        self._keys = keys
        self._receiver = Receiver(services.config, limits)
        self._guarded: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        path = handler_call_details.method
        if path not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # there is no such call
            self._guarded[path] = self._guard(path, handler)
        return self._guarded[path]

    def _guard(self, path: str, handler: Any) -> Any:
        """The handler of a call as the server gets it."""
        kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        call: Callable[[Any, Context], Any] = getattr(handler, kind)

        async def one(_: Any, context: Context) -> Any:
            async with self._admitted(path, handler, context) as request:
                return await call(request, context)

        async def many(_: Any, context: Context) -> None:
            async with self._admitted(path, handler, context) as request:
                if not inspect.isasyncgenfunction(call):
                    await call(request, context)
                    return
                with MessageWriter(context, self._services.config.max_reader_stall_s) as writer:
                    async with aclosing(call(request, context)) as answers:
                        async for answer in answers:
                            await writer.write(answer)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(one, None, handler.response_serializer)

    @asynccontextmanager
    async def _admitted(self, path: str, handler: Any, context: Context) -> AsyncIterator[Any]:
        """The message of a call, or the iterator over its messages. What fails within ends the call."""
        key = self._keys.get(path, Key.TENANT)
        try:
            tenant = await self._let_in(key, context)
            parse = handler.request_deserializer
            if handler.request_streaming:
                with self._receiver.stream(context, tenant or key, parse) as messages:
                    yield messages
                return
            data = await self._receiver.message(context, tenant if key is not Key.ADMIN else key)
            if tenant is None:
                request = self._receiver.parsed(data, parse)
                yield request
                if key is Key.ADMIN:
                    self._note(path, request, "OK", context)
                return
            with self._services.in_flight.take(tenant, body_bytes=len(data)):
                request = self._receiver.parsed(data, parse)
                del data
                yield request
        except MooringError as error:
            if key is Key.ADMIN and not isinstance(error, AuthenticationError):
                self._note(path, None, status_of(error).grpc, context)
            await abort(context, error)
        except grpc.aio.BaseError:  # gRPC's own, as when the client is gone
            raise
        except Exception:  # the edge of the process: a bug must end this call and no other
            _log.exception("a bug while answering %s", path)
            await abort(context, InternalError("An error of the server's own; it has been logged."))

    async def _let_in(self, key: Key, context: Context) -> Tenant | None:
        """The tenant who calls; None if the call needs another key, or none.

        Raises:
            AuthenticationError: the key is missing or wrong.
        """
        if key is Key.NONE:
            return None
        api_key = api_key_of(metadata_of(context))
        try:
            if key is Key.ADMIN:
                check_admin_key(api_key, self._admin_key)
                return None
            tenant = await self._services.tenancy.tenant_of(api_key)
        except AuthenticationError:
            self._services.metrics.audit.key_refused("grpc", api_key, context.peer())
            raise
        _CALLER.set(tenant)
        _CALLER_NOW.set(partial(self._services.tenancy.tenant_of, api_key))
        return tenant

    def _note(self, path: str, request: Any, outcome: str, context: Context) -> None:
        """Leaves a trace of an administrative act. ``request``: its message; None if it was not understood."""
        target = str(getattr(request, "model_name", ""))
        self._services.metrics.audit.act(f"grpc {path.rpartition('/')[2]}", target, outcome, context.peer())


def _arity(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"
