"""Parts that the gRPC doors share: a call's metadata, and errors as its status."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mooring.errors import MooringError, UnsupportedFieldError, status_of

__all__ = ["Context", "abort", "metadata_of", "refuse_unknown_fields"]

Context = grpc.aio.ServicerContext[Any, Any]


def metadata_of(context: Context) -> dict[str, str]:
    """The client's metadata that is text, names in lower case as gRPC has them."""
    pairs = context.invocation_metadata() or ()
    return {name: value for name, value in pairs if isinstance(value, str)}


async def abort(context: Context, error: MooringError) -> NoReturn:
    """Ends the call with the status of ``mooring.errors.STATUS``. Trailing metadata has the rest:
    ``error-code``, ``error-param``, ``retry-after``."""
    status = status_of(error)
    details = {
        "error-code": error.code,
        "error-param": error.param,
        "retry-after": None if error.retry_after_s is None else str(math.ceil(error.retry_after_s)),
    }
    trailing = tuple((name, _printable(value)) for name, value in details.items() if value is not None)
    message = error.message.encode("utf-8", "replace").decode()  # it may quote half of a surrogate pair
    await context.abort(grpc.StatusCode[status.grpc], message, trailing)


def refuse_unknown_fields(request: Message) -> None:
    """Refuses a field of a newer protocol, however deep it stands; the server knows only its number, not its
    name.

    Raises:
        UnsupportedFieldError: the message has such a field.
    """
    unknown = UnknownFieldSet(request)
    if len(unknown):
        number = unknown[0].field_number
        raise UnsupportedFieldError(
            f"Field number {number} of {request.DESCRIPTOR.name} is not known to this server.",
            param=str(number),
        )
    for field, value in request.ListFields():
        if field.message_type is None:
            continue
        if not field.is_repeated:
            refuse_unknown_fields(value)
            continue
        for each in value.values() if field.message_type.GetOptions().map_entry else value:
            if isinstance(each, Message):  # values of a map may be plain
                refuse_unknown_fields(each)


def _printable(value: str) -> str:
    """The text with only characters that metadata may hold: gRPC ends the call with an error of its own if it
    is given others."""
    return "".join(char if " " <= char <= "~" else "?" for char in value)
