"""The command line's side of the admin API."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mooring.config import (
    admin_key_from_environment,
    load_settings,
    server_from_environment,
)
from mooring.errors import ConfigurationError, MooringError, TransientError, error_from_code
from mooring.server.admin_key import read_admin_key
from mooring.server.data_dir import published_addresses
from mooring.server.exposure import is_loopback

__all__ = ["Connection"]

_PAGE = 1000  # entries, the most that the server gives at once
_PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


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
        self._client_certificate = client_certificate
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

    def _client(self, read_timeout_s: float) -> tuple[str, httpx.Client]:
        """The server's address, and a client that sends the admin key to it and to nobody else.

        Raises:
            MooringError: no server is known, or there is no key for it.
        """
        settings = load_settings({"data_dir": self.data_dir})
        key = admin_key_from_environment() or read_admin_key(settings.admin_key_path)
        server = self._server or server_from_environment()
        is_named = server is not None
        context = None
        if server is None:
            published = published_addresses(settings.data_dir)
            if published is None:
                raise TransientError(
                    f"no server uses the data folder {settings.data_dir}: start one with `mooring serve`, or name "
                    "one with --server"
                )
            server = _within_reach(published["http"])
            if "tls_certificate" in published:
                context = _trusting(Path(published["tls_certificate"]))
        if context is None:  # reading the authorities that the system trusts takes a while
            is_secret = server.startswith("https:")
            context = ssl.create_default_context() if is_secret else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._client_certificate is not None:
            try:
                context.load_cert_chain(self._client_certificate)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(f"{self._client_certificate} cannot be used: {error}") from error
        client = httpx.Client(
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(30.0, read=read_timeout_s),
            verify=context,
            # A server of this machine needs no proxy, which must not be shown the key.
            trust_env=is_named and not _is_loopback(server),
        )
        return server.rstrip("/"), client


def _within_reach(url: str) -> str:
    """An address at which this machine reaches a server that listens on all of its addresses."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _trusting(certificate: Path) -> ssl.SSLContext:
    """Trusts this certificate, whatever name it bears, and no other: not those of its issuer either, so of a chain
    only its first certificate counts.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        first = _PEM_CERTIFICATE.search(certificate.read_text())
        context.load_verify_locations(cadata=first[0] if first else "")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the server's certificate {certificate} cannot be read: {error}") from error
    return context


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
