"""Answers of the web UI's process itself, in the form of the server's errors."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from mooring.errors import MooringError, retry_advice, status_of

__all__ = ["NO_STORE", "error_answer"]

NO_STORE: Mapping[str, str] = {"cache-control": "no-store"}


def error_answer(error: MooringError) -> JSONResponse:
    """An error as the server's HTTP door would answer it."""
    body = {"error": {"message": error.message, "code": error.code, "param": error.param}}
    return JSONResponse(body, status_of(error).http, headers={**NO_STORE, **retry_advice(error)})
