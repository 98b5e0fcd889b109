"""Requests that a web browser sends because a page of another site told it to: they are told by their headers."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from mooring.errors import MisdirectedRequestError, PermissionDeniedError, UnsupportedMediaTypeError
from router.request.exposure import Exposure

__all__ = ["check_content_type", "check_host", "check_origin", "is_visit"]

# Pages may send these to any server, without its leave. Nothing that we serve is sent so.
_SENT_UNASKED = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
_OTHER_SITES = frozenset({"cross-site", "same-site"})
_MAX_SHOWN = 100


def check_host(headers: Headers, exposure: Exposure) -> None:
    """Refuses a request for another name than ours. The owner of a name can let it stand for this machine's address,
    and then the browser takes this server for the owner's own.

    Raises:
        MisdirectedRequestError: the name in ``Host`` is not one of ours. Browsers always send one.
    """
    host = headers.get("host")
    if not exposure.checks_hosts or host is None or _is_ours(_name(host), exposure):
        return
    raise MisdirectedRequestError(
        f"This server is not '{host[:_MAX_SHOWN]}': ask it as localhost, or allow the name with --allowed-host."
    )


def check_origin(headers: Headers, exposure: Exposure) -> None:
    """Refuses what a page of another site sends without a key. Pages cannot add one without our leave, which no
    page gets.

    Raises:
        PermissionDeniedError: the page is not ours.
    """
    origin = headers.get("origin")
    is_foreign = headers.get("sec-fetch-site") in _OTHER_SITES
    if is_foreign or (origin is not None and not _is_own_page(origin, headers.get("host", ""), exposure)):
        raise PermissionDeniedError("Pages of other sites may not send requests without a key.")


def is_visit(headers: Headers, method: str) -> bool:
    """Whether the browser's user goes to a page of ours, as by a link on another site: the page is then shown alone,
    and the other site learns nothing of it."""
    goes = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return goes and method in ("GET", "HEAD")


def check_content_type(headers: Headers) -> None:
    """Refuses bodies of the types that pages may send to any server.

    Raises:
        UnsupportedMediaTypeError: the body is of such a type.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in _SENT_UNASKED:
        raise UnsupportedMediaTypeError(
            f"A body of type '{content_type}' is not read: send JSON as 'Content-Type: application/json'."
        )


def _is_own_page(origin: str, host: str, exposure: Exposure) -> bool:
    try:
        site = urlsplit(origin).netloc.lower()
    except ValueError:  # not an address at all
        return False
    return site == host.lower() and _is_ours(_name(site), exposure)


def _name(host: str) -> str:
    """The name without the port, in one spelling."""
    name = host.rpartition(":")[0] if host.rpartition("]")[2].count(":") else host
    return name.strip("[]").lower().rstrip(".")


def _is_ours(name: str, exposure: Exposure) -> bool:
    if name == "localhost" or name in exposure.allowed_hosts:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
