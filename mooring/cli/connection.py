"""The command line's side of the admin API."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mooring.config import (
    admin_key_from_environment,
    load_settings,
    server_from_environment,
)
from mooring.errors import ConfigurationError, MooringError, TransientError, error_from_code
from mooring.loopback import is_loopback
from mooring.server.admin_key import read_admin_key
from mooring.server.data_dir import published_addresses
from mooring.server.exposure import within_reach
from mooring.trust import trust_only

__all__ = ["Connection", "ServerAddress"]

_PAGE = 1000  # entries, the most that the server gives at once


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a server.

    Attributes:
        url: its base address.
        certificate: the only certificate that it may have; None if the system's authorities say.
        is_named: whether the user named it; else it is the one of the data folder.
    """

    url: str
    certificate: Path | None
    is_named: bool


class Connection:
    """Speaks to one server's admin API with the admin key of its data folder.

    Args:
        server: base address; None takes ``MOORING_SERVER``, else the address that the server of the data
            folder published.
        data_dir: folder with ``admin.key``; None takes the settings' folder.
        client_certificate: PEM file with a certificate and its key, for a server that wants clients to have one.
    """

    def __init__(
        self, server: str | None, data_dir: Path | None, client_certificate: Path | None = None
    ) -> None:
        self._server = server
        self.client_certificate = client_certificate
        self.data_dir = data_dir

    def get(self, path: str) -> Any:
        return self._request("GET", path)

    def get_all(self, path: str) -> list[Any]:
        """All entries of a list, page by page."""
        entries: list[Any] = []
        page: dict[str, str | int] = {"limit": _PAGE}
        while True:
            response = self._send("GET", path, params=page)
            entries += response.json()
            if "x-mooring-next" not in response.headers:
                return entries
            page["after"] = response.headers["x-mooring-next"]

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._request("POST", path, body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("PATCH", path, body)

    def delete(self, path: str) -> Any:
        return self._request("DELETE", path)

    def events(self, path: str) -> Iterator[Any]:
        """Yields the data of server-sent events as they come, until the server ends the stream.

        Raises:
            MooringError: as the other calls; also if the stream breaks.
        """
        server, client = self._client(read_timeout_s=60.0)
        try:
            with client, client.stream("GET", f"{server}/admin/v1{path}") as response:
                if response.is_error:
                    response.read()
                    raise _error_of(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield _event(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise TransientError(f"the stream from {server} broke: {error}") from error

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends a request; returns the JSON of its answer. Raises as ``_send`` does."""
        response = self._send(method, path, body)
        return response.json() if response.content else None

    def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        params: dict[str, str | int] | None = None,
    ) -> httpx.Response:
        """Sends a request; returns its answer.

        Raises:
            MooringError: the server answered with an error, or cannot be reached.
        """
        server, client = self._client(read_timeout_s=600.0)
        try:
            with client:
                response = client.request(method, f"{server}/admin/v1{path}", json=body, params=params)
        except httpx.TransportError as error:
            raise TransientError(
                f"no server answers at {server} ({error}): start one with `mooring serve`"
            ) from error
        if response.is_error:
            raise _error_of(response)
        return response

    def address(self) -> ServerAddress:
        """The address of the server.

        Raises:
            TransientError: none is known.
        """
        named = self._server or server_from_environment()
        if named is not None:
            return ServerAddress(named.rstrip("/"), None, is_named=True)
        folder = load_settings({"data_dir": self.data_dir}).data_dir
        published = published_addresses(folder)
        if published is None:
            raise TransientError(
                f"no server uses the data folder {folder}: start one with `mooring serve`, or name one with --server"
            )
        certificate = published.get("tls_certificate")
        return ServerAddress(
            within_reach(published["http"]),
            None if certificate is None else Path(certificate),
            is_named=False,
        )

    def admin_key(self) -> str:
        """The server's admin key.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        path = load_settings({"data_dir": self.data_dir}).admin_key_path
        return admin_key_from_environment() or read_admin_key(path)

    def _client(self, read_timeout_s: float) -> tuple[str, httpx.Client]:
        """The server's address, and a client that sends the admin key to it and to nobody else.

        Raises:
            MooringError: no server is known, or there is no key for it.
        """
        key = self.admin_key()
        address = self.address()
        server = address.url
        if address.certificate is not None:
            context = trust_only(address.certificate)
        else:  # reading the authorities that the system trusts takes a while
            is_secret = server.startswith("https:")
            context = ssl.create_default_context() if is_secret else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.client_certificate is not None:
            try:
                context.load_cert_chain(self.client_certificate)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(f"{self.client_certificate} cannot be used: {error}") from error
        client = httpx.Client(
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(30.0, read=read_timeout_s),
            verify=context,
            # A server of this machine needs no proxy, which must not be shown the key.
            trust_env=address.is_named and not _is_loopback(server),
        )
        return server, client


def _is_loopback(server: str) -> bool:
    try:
        return is_loopback(httpx.URL(server).host)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{server} is not an address: {error}") from error


def _event(text: str) -> Any:
    """An event's data. Raises the error with which the server ends a stream if it cannot go on."""
    data = json.loads(text)
    if isinstance(data, dict) and data.keys() == {"error"}:
        raise error_from_code(str(data["error"]["code"]), str(data["error"]["message"]))
    return data


def _error_of(response: httpx.Response) -> MooringError:
    try:
        error = response.json()["error"]
        return error_from_code(str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return MooringError(f"the server answered {response.status_code}: {response.text[:200]}")
