"""Traces of refused keys and administrative acts at the HTTP door."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.doors.http.access import kserve_act
from router.telemetry.audit import AuditTrail
from router.tenancy.keys import api_key_of

__all__ = ["AuditMiddleware"]


class AuditMiddleware:
    """Notes every answer 401, and every answer to a request of the operator's that is no GET. As plain ASGI; the
    routes that it wraps check the keys.

    Args:
        audit: takes the notes.
    """

    def __init__(self, app: ASGIApp, audit: AuditTrail) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noted(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self._note(scope, message["status"])
            await send(message)

        await self._app(scope, receive, send_noted)

    def _note(self, scope: Scope, status: int) -> None:
        path, (address, _) = scope["path"], scope.get("client") or ("a Unix socket", 0)
        if status == 401:
            self._audit.key_refused(_door(path), api_key_of(Headers(scope=scope)), address)
            return
        # A request that found no route has got past no key; it does nothing either.
        if scope.get("method") in (None, "GET", "HEAD", "OPTIONS") or "endpoint" not in scope:
            return
        if act := _act(scope, path):
            self._audit.act(act, path, str(status), address)


def _door(path: str) -> str:
    doors = {"/admin": "admin", "/v2": "kserve", "/metrics": "metrics"}
    return next((door for prefix, door in doors.items() if path.startswith(prefix)), "openai")


def _act(scope: Scope, path: str) -> str | None:
    """The administrative act that is asked for, one of few; None if it is none."""
    if act := kserve_act(path):
        return f"kserve {act}"
    if not path.startswith("/admin"):
        return None
    # FastAPI's versions differ in whether a route knows what stands before it.
    route = getattr(scope.get("route"), "path_format", "").removeprefix("/admin/v1")
    return f"{scope['method']} {route}"
