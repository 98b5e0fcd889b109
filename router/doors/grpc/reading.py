"""Treats messages that cannot be read as the caller's mistake; gRPC by itself calls them an unknown error of
the server."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mooring.errors import InvalidRequestError
from router.doors.grpc.errors import Context, abort

__all__ = ["MessageReader"]

_Call = Callable[[Any, Context], Any]


class MessageReader(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Reads the messages of all calls of a server. A message that is not of its call's type ends the call
    with INVALID_ARGUMENT."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return None if handler is None else _reading(handler)  # None: there is no such call


def _reading(handler: Any) -> Any:
    """Makes a handler read its messages inside the call, which can then still say what is wrong with
    them."""
    kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
    call: _Call = getattr(handler, kind)
    read = _reader(handler.request_deserializer)
    # gRPC reads the messages of a stream while the call takes them; a single one it would read before the
    # call.
    in_stream, at_once = (read, _as_it_is) if handler.request_streaming else (None, read)

    async def one(request: Any, context: Context) -> Any:
        try:
            return await call(at_once(request), context)
        except InvalidRequestError as error:
            await abort(context, error)

    async def many(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async with aclosing(call(at_once(request), context)) as answers:
                async for answer in answers:
                    yield answer
        except InvalidRequestError as error:
            await abort(context, error)

    wrapped = many if inspect.isasyncgenfunction(call) else one
    return handler._replace(request_deserializer=in_stream, **{kind: wrapped})


def _reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(message: bytes) -> Any:
        try:
            return parse(message)
        except DecodeError as error:
            raise InvalidRequestError(f"The message cannot be read: {error}.") from error

    return read


def _as_it_is(request: Any) -> Any:
    return request


def _arity(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"
