"""The checks before every request of the web UI, and the headers of every answer."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from admin_ui.answers import error_answer
from admin_ui.config import UiConfig
from mooring.errors import MisdirectedRequestError, MooringError, PermissionDeniedError
from mooring.loopback import is_loopback

__all__ = ["SECURITY_HEADERS", "UiGuard", "comes_from_socket"]

SECURITY_HEADERS = {
    # No inline script, no inline style, nothing from elsewhere. Styles that a script sets on an element are allowed.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_READS = frozenset({"GET", "HEAD"})
_OTHER_SITES = frozenset({"cross-site", "same-site"})
_MAX_SHOWN = 100


class UiGuard:
    """Refuses requests under a name that is not ours, and from pages that are not ours. As plain ASGI, for HTTP and
    WebSocket.

    Args:
        app: gets the requests that are let through.
        config: the names that are ours.
    """

    def __init__(self, app: ASGIApp, config: UiConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                named = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    named[name] = value
                if self._config.is_secret:
                    named["strict-transport-security"] = "max-age=31536000"
            await send(message)

        try:
            if not comes_from_socket(scope):  # whose file only its user can open
                self._check(scope, headers)
        except MooringError as error:
            if scope["type"] == "websocket":
                await receive()  # says only that the client is there
            await error_answer(error)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise MisdirectedRequestError(
                f"This is not '{host[:_MAX_SHOWN]}': ask it as localhost, or allow the name with --allowed-host."
            )
        origin = headers.get("origin")
        reads = scope["type"] == "http" and scope["method"] in _READS
        if origin is None:
            # Browsers name the page with every write and every WebSocket; reads of other sites' pages they mark.
            goes = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            is_foreign = headers.get("sec-fetch-site") in _OTHER_SITES and not goes
            # No page makes a browser send a key of its own choosing and no origin: a visitor's program does that.
            is_program = self._config.playground and "authorization" in headers
            if is_foreign or not (reads or is_program):
                raise PermissionDeniedError("Only this UI's own pages may ask for that.")
        elif not self._is_own_page(origin, host):
            raise PermissionDeniedError("Pages of other sites may ask for nothing here.")

    def _is_own_page(self, origin: str, host: str) -> bool:
        try:
            site = urlsplit(origin)
        except ValueError:
            return False
        scheme = "https" if self._config.is_secret else "http"
        return site.scheme == scheme and site.netloc.lower() == host.lower()

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return is_loopback(name) or name in self._config.allowed_hosts


def comes_from_socket(scope: Scope) -> bool:
    """Whether a request came over the Unix socket: only there the client has no address, and the server no port."""
    server = scope.get("server")
    return scope.get("client") is None and server is not None and server[1] is None
