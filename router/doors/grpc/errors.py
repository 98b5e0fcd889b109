"""Parts that the gRPC doors share: a call's client and metadata, and errors as its status."""

from __future__ import annotations

from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from mooring.errors import MooringError, retry_advice, status_of
from router.request.network import network_of

__all__ = ["Context", "abort", "client_network_of", "metadata_of"]

_MAX_MESSAGE_CHARS = 1000  # clients take about 8 KiB of metadata, and a character may need 12 bytes
_MAX_PARAM_CHARS = 200

Context = grpc.aio.ServicerContext[Any, Any]


def client_network_of(context: Context) -> str:
    """The network that the client comes from."""
    kind, _, address = unquote(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):  # a Unix socket
        return kind
    return network_of(address.rpartition(":")[0].strip("[]"))


def metadata_of(context: Context) -> dict[str, str]:
    """The client's metadata that is text, names in lower case as gRPC has them."""
    pairs = context.invocation_metadata() or ()
    return {name: value for name, value in pairs if isinstance(value, str)}


async def abort(context: Context, error: MooringError) -> NoReturn:
    """Ends the call with the status of ``mooring.errors.STATUS``. Trailing metadata has the rest:
    ``error-code``, ``error-param``, ``predicted-wait-ms`` and what ``retry_advice`` says. Long texts are cut: they
    quote what the client sent."""
    status = status_of(error)
    details = {
        "error-code": error.code,
        "error-param": None if error.param is None else error.param[:_MAX_PARAM_CHARS],
        "predicted-wait-ms": None if error.predicted_wait_ms is None else str(error.predicted_wait_ms),
        **retry_advice(error),
    }
    trailing = tuple((name, _printable(value)) for name, value in details.items() if value is not None)
    message = error.message[:_MAX_MESSAGE_CHARS]
    message = message.encode("utf-8", "replace").decode()  # it may quote half of a surrogate pair
    await context.abort(grpc.StatusCode[status.grpc], message, trailing)


def _printable(value: str) -> str:
    """The text with only characters that metadata may hold: gRPC ends the call with an error of its own if it
    is given others."""
    return "".join(char if " " <= char <= "~" else "?" for char in value)
