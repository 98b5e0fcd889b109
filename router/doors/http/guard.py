"""The one guard before all routes of the HTTP door: it looks at a request's headers, and only then may its body be
read."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mooring.errors import MooringError, RequestTooLargeError
from mooring.units import MIB
from router.doors.http.access import Access, OperatorKeys, access_of, is_kserve
from router.doors.http.browsers import check_content_type, check_host, check_origin, is_visit
from router.doors.http.errors import error_body, error_response, plain_error_body
from router.intake import request_id_from
from router.services import RouterServices
from router.tenancy.in_flight import Held
from router.tenancy.keys import api_key_of, check_admin_key
from router.tenancy.tenant import Tenant

__all__ = ["Guard"]

_MAX_ADMIN_BODY_BYTES = 1 * MIB
_OPERATOR = Tenant("operator", b"operator")  # whose bodies count apart from every tenant's


class Guard:
    """Refuses requests for other servers, from pages of other sites, without the key that their path needs, and with
    more of a body than may be read. Leaves the tenant in ``scope["state"]["tenant"]``.

    As plain ASGI, for HTTP and WebSocket. A request that carries a tenant already comes from an open WebSocket, which
    answers for it.

    Args:
        app: gets the requests that are let through.
        services: the tenants, the limits, and who can reach the door.
        keys: the keys that are no tenant's.
    """

    def __init__(self, app: ASGIApp, services: RouterServices, keys: OperatorKeys) -> None:
        self._app = app
        self._services = services
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        if "tenant" in state:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        access = access_of(scope["path"])
        if self._services.exposure.behind_proxy:
            _believe_proxy(scope, headers)
        try:
            state["tenant"] = await self._admit(headers, access, scope.get("method", ""))
            if scope["type"] == "websocket" or access in (Access.OPEN, Access.METRICS):
                body = None  # nobody reads one
            else:
                body = self._body(headers, state["tenant"], receive)
        except MooringError as error:
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.held.release()

    async def _admit(self, headers: Headers, access: Access, method: str) -> Tenant | None:
        """The tenant who may go on; None if the path is no tenant's.

        Args:
            method: of HTTP; empty for a WebSocket.

        Raises:
            MooringError: the request may not go on.
        """
        exposure = self._services.exposure
        if not (exposure.is_public and access is Access.OPEN):  # probes of health ask by address
            check_host(headers, exposure)
        key = api_key_of(headers)
        if key is None and not (access is Access.OPEN and is_visit(headers, method)):
            check_origin(headers, exposure)
        check_content_type(headers)
        if access is Access.TENANT:
            return await self._services.tenancy.tenant_of(key)
        if access is Access.ADMIN:
            check_admin_key(key, self._keys.admin)
        if access is Access.METRICS and exposure.is_public:
            self._check_metrics_key(key)
        return None

    def _check_metrics_key(self, key: str | None) -> None:
        if self._keys.metrics is None or not hmac.compare_digest(
            (key or "").encode(), self._keys.metrics.encode()
        ):
            check_admin_key(key, self._keys.admin)

    def _body(self, headers: Headers, tenant: Tenant | None, receive: Receive) -> _Body:
        config = self._services.config
        most = (
            config.max_body_bytes if tenant is not None else min(config.max_body_bytes, _MAX_ADMIN_BODY_BYTES)
        )
        announced = headers.get("content-length", "")
        num_bytes = int(announced) if announced.isdecimal() else 0
        if num_bytes > most:
            raise _too_large(
                most
            )  # the server reads and drops the rest, so that the client gets to see the answer
        held = self._services.in_flight.take(tenant or _OPERATOR, body_bytes=num_bytes)
        return _Body(receive, held, num_bytes, most)


class _Body:
    """The body of a request as it comes.

    Args:
        held: bytes in flight that the request holds.
        num_held_bytes: their number, from the announced length.
        max_bytes: most bytes that the body may have.
    """

    def __init__(self, receive: Receive, held: Held, num_held_bytes: int, max_bytes: int) -> None:
        self.held = held
        self._receive = receive
        self._num_held_bytes = num_held_bytes
        self._max_bytes = max_bytes
        self._num_bytes = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            RequestTooLargeError: more has come than may.
            MooringError: too much is in flight.
        """
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        if self._num_bytes > self._num_held_bytes:
            self.held.add(body_bytes=self._num_bytes - self._num_held_bytes)
            self._num_held_bytes = self._num_bytes
        return message


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is larger than the {max_bytes} bytes that this server accepts.")


async def _refuse(error: MooringError, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {}
    if scope["type"] == "websocket":
        await receive()  # this message says only that the client is there
        headers["x-request-id"] = request_id_from(Headers(scope=scope).get("x-request-id"))
    body = plain_error_body(error) if is_kserve(scope["path"]) else error_body(error)
    await error_response(error, headers, body=body)(scope, receive, send)


def _believe_proxy(scope: Scope, headers: Headers) -> None:
    """Takes the client's address and scheme from the proxy, which adds its own view at the end of what it got."""
    address = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    if address:
        scope["client"] = (address, 0)
    scheme = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
    if scheme in ("http", "https"):
        scope["scheme"] = scheme if scope["type"] == "http" else {"http": "ws", "https": "wss"}[scheme]
