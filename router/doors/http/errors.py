"""Turns every error into the form that OpenAI's clients expect, whoever raised it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mooring.errors import (
    InternalError,
    InvalidRequestError,
    MooringError,
    NotFoundError,
    UnsupportedFieldError,
    retry_advice,
    status_of,
)

__all__ = [
    "CLIENT_GONE",
    "ERROR_RESPONSES",
    "TOO_MANY_FIELDS",
    "UNSUPPORTED_VALUE",
    "ErrorAnswer",
    "ErrorDetail",
    "error_body",
    "error_from_validation",
    "error_response",
    "install_error_handlers",
    "plain_error_body",
    "valid_unicode",
]


class ErrorDetail(BaseModel):
    """An error: a sentence, OpenAI's class of error, the field at fault, and a stable code; of a request that was
    refused since it would have waited too long, how long."""

    message: str
    type: str
    param: str | None
    code: str
    predicted_wait_ms: int | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


# For the OpenAPI page of every route; it also keeps the framework's own error form off that page.
ERROR_RESPONSES: Mapping[int | str, dict[str, Any]] = MappingProxyType(
    {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
)

UNSUPPORTED_VALUE = "unsupported_value"
"""The type of a validation error about a field (``ctx["field"]``) that we know and do not serve."""

TOO_MANY_FIELDS = "too_many_fields"
"""The type of a validation error about an object that has more fields than any of ours."""

CLIENT_GONE = 499
"""nginx's status for a client that went away; nobody reads it."""

_log = logging.getLogger(__name__)
# Errors quote what the client sent, which may be megabytes; they are sent at once, whether or not anybody reads.
_MAX_MESSAGE_CHARS = 2000
_MAX_PARAM_CHARS = 200
# Steps of a validation path that name a type of a union, not a field.
_TYPE_NAMES = {"str", "int", "float", "bool", "none"}


def error_body(error: MooringError) -> bytes:
    """The error object, as JSON."""
    content = {
        "message": _message(error),
        "type": status_of(error).openai_type,
        "param": None if error.param is None else valid_unicode(error.param[:_MAX_PARAM_CHARS]),
        "code": error.code,
        **_prediction(error),
    }
    return orjson.dumps({"error": content})


def plain_error_body(error: MooringError) -> bytes:
    """The error as KServe's REST protocol has it: the sentence alone, and how long a refused request would have
    waited."""
    return orjson.dumps({"error": _message(error), **_prediction(error)})


def _prediction(error: MooringError) -> dict[str, int]:
    return {} if error.predicted_wait_ms is None else {"predicted_wait_ms": error.predicted_wait_ms}


def _message(error: MooringError) -> str:
    return valid_unicode(error.message[:_MAX_MESSAGE_CHARS])


def error_response(
    error: MooringError,
    headers: Mapping[str, str] | None = None,
    *,
    status: int | None = None,
    body: bytes | None = None,
) -> Response:
    """The whole answer; with the headers that say whether and when to come again.

    Args:
        headers: headers to send as well.
        status: HTTP status, if it is not the one that ``mooring.errors.STATUS`` gives.
        body: JSON to send instead of OpenAI's error object.
    """
    headers = {**(headers or {}), **retry_advice(error)}
    status = status or status_of(error).http
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(body or error_body(error), status, headers, media_type="application/json")


def error_from_validation(errors: list[Any]) -> MooringError:
    """Turns the most telling of pydantic's validation errors into one of ours.

    An error about an unknown field goes first; then the deepest one, which in a union belongs to the
    alternative that was meant.
    """
    worst = max(errors, key=lambda e: (e["type"] in ("extra_forbidden", UNSUPPORTED_VALUE), len(e["loc"])))
    kind = worst["type"]
    if kind == UNSUPPORTED_VALUE:
        param = _param((*worst["loc"], worst["ctx"]["field"]), ends_in_field=True)
        return UnsupportedFieldError(
            f"Unsupported parameter: this server does not serve '{param}' with this value.", param=param
        )
    param = _param(worst["loc"], ends_in_field=kind in ("extra_forbidden", "missing"))
    if kind == "extra_forbidden":
        return UnsupportedFieldError(f"Unsupported parameter: '{param}'. Leave it out.", param=param)
    if worst["loc"] == ("body",) and kind == "missing":
        return InvalidRequestError("The body is empty: send a JSON object.")
    if kind == "missing":
        return InvalidRequestError(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if kind == TOO_MANY_FIELDS:
        return InvalidRequestError(f"Invalid '{param or 'body'}': {worst['msg']}.", param=param)
    if param is None:
        return InvalidRequestError(
            "The body must be a JSON object, sent with 'Content-Type: application/json'."
        )
    code = "invalid_type" if kind.endswith("_type") else None
    return InvalidRequestError(f"Invalid '{param}': {worst['msg']}.", param=param, code=code)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of the app, known or not, an OpenAI error object."""

    def mooring_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, MooringError)
        return error_response(error)

    def validation_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(error_from_validation(list(error.errors())))

    def client_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(_error_from_http(request, error), error.headers, status=error.status_code)

    def bug(request: Request, error: Exception) -> Response:
        _log.error("a bug while answering %s %s", request.method, request.url.path, exc_info=error)
        # This answer is made outside of the middleware that sets the request's id.
        headers = {"x-request-id": getattr(request.state, "request_id", "")}
        return error_response(InternalError("An error of the server's own; it has been logged."), headers)

    app.add_exception_handler(MooringError, mooring_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(ClientDisconnect, client_gone)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, bug)


def valid_unicode(text: str) -> str:
    """Text that may quote the client, without the half surrogate pairs that JSON lets it send."""
    return text.encode("utf-8", "replace").decode()


def _error_from_http(request: Request, error: HTTPException) -> MooringError:
    """The error for what the framework itself refuses: unknown routes, methods, bodies."""
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return NotFoundError(f"Invalid URL ({where}).", code="unknown_url")
    if error.status_code == 405:
        return InvalidRequestError(f"Not allowed to {where}.", code="method_not_allowed")
    if error.status_code < 500:
        return InvalidRequestError(error.detail)
    return InternalError(error.detail)


def _param(loc: tuple[str | int, ...], *, ends_in_field: bool) -> str | None:
    """A validation path as OpenAI writes it: ``messages[0].role``.

    The first step says that the field is in the body. Names of the types of a union are steps too (``str``,
    ``list[TextPart]``) and are left out; but the last step may have any name if it is a field's.
    """
    text = ""
    for place, step in enumerate(loc[1:], start=1):
        certain = ends_in_field and place == len(loc) - 1
        if isinstance(step, int):
            text += f"[{step}]"
        elif certain or (step not in _TYPE_NAMES and "[" not in step):
            text += f".{step}" if text else step
    return text or None
