"""The web UI's way to the server."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx

from admin_ui.config import UiConfig
from mooring.errors import (
    AuthenticationError,
    ConfigurationError,
    ModelUnavailableError,
    PermissionDeniedError,
)
from mooring.loopback import is_loopback
from mooring.trust import trust_only

__all__ = ["KeyedServer", "check_admin_key", "server_client", "unreachable"]

_CONNECT_S = 5.0
_READ_S = 660.0  # a wake answers when the model is there
_MAX_CONNECTIONS = 256
_LOOK_S = 10.0


def server_client(config: UiConfig) -> httpx.AsyncClient:
    """A client of the server, which sends nothing to anybody else.

    Raises:
        ConfigurationError: a certificate cannot be used, or the address is none.
    """
    try:
        url = httpx.URL(config.server)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{config.server} is not an address: {error}") from error
    if config.server_certificate is not None:
        context = trust_only(Path(config.server_certificate))
    elif url.scheme == "https":
        context = ssl.create_default_context()
    else:  # reading the authorities that the system trusts takes a while
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.client_certificate is not None:
        try:
            context.load_cert_chain(config.client_certificate)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{config.client_certificate} cannot be used: {error}") from error
    return httpx.AsyncClient(
        base_url=url,
        verify=context,
        timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
        # A server of this machine needs no proxy, which must not be shown the key.
        trust_env=not is_loopback(url.host),
        follow_redirects=False,
    )


def unreachable(client: httpx.AsyncClient, error: Exception) -> ModelUnavailableError:
    """The error of a call that did not reach the server."""
    return ModelUnavailableError(
        f"No server answers at {client.base_url} ({type(error).__name__}).", code="server_unreachable"
    )


async def check_admin_key(client: httpx.AsyncClient, admin_key: str) -> None:
    """Asks the server whether a key is its admin key.

    Raises:
        AuthenticationError: it is not.
        ModelUnavailableError: the server cannot be asked.
    """
    if not (admin_key.isascii() and admin_key.isprintable() and admin_key.strip()):
        raise AuthenticationError("That is not the admin key.")
    try:
        answer = await client.get("/admin/v1/workers", headers={"authorization": f"Bearer {admin_key}"})
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error
    if answer.status_code in (401, 403):
        raise AuthenticationError("That is not the admin key.")
    if answer.is_error:
        raise _odd(client, answer)


def _odd(client: httpx.AsyncClient, answer: httpx.Response) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"The server at {client.base_url} answered {answer.status_code}.", code="server_unreachable"
    )


class KeyedServer:
    """A server that has to want keys. On loopback it wants none unless it is told to, and through a UI that other
    machines reach, that would be for everybody.

    Args:
        client: the way to the server.
        clock: seconds that only grow.
    """

    def __init__(self, client: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._seen_at_s = -math.inf

    async def check(self) -> None:
        """Asks the server, unless it was asked within the last seconds.

        Raises:
            PermissionDeniedError: it answers without a key.
            ModelUnavailableError: it cannot be asked.
        """
        if self._clock() - self._seen_at_s < _LOOK_S:
            return
        try:
            answer = await self._client.get("/v1/models")
        except httpx.HTTPError as error:
            raise unreachable(self._client, error) from error
        if answer.is_success:
            raise PermissionDeniedError(
                "The server answers without a key, and this page is open to other machines: whoever runs it has to "
                "start the server with --require-keys."
            )
        if answer.status_code != 401:
            raise _odd(self._client, answer)
        self._seen_at_s = self._clock()
