"""The command line's side of the admin API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mooring.config import (
    admin_key_from_environment,
    default_server_url,
    load_settings,
    server_from_environment,
)
from mooring.errors import ConfigurationError, MooringError, TransientError, error_from_code
from mooring.server.admin_key import read_admin_key
from mooring.server.data_dir import published_http_url

__all__ = ["Connection"]


class Connection:
    """Speaks to one server's admin API with the admin key of its data folder.

    Args:
        server: base address; None takes ``MOORING_SERVER``, else the address that the server of the data
            folder published, else the settings' address.
        data_dir: folder with ``admin.key``; None takes the settings' folder.
    """

    def __init__(self, server: str | None, data_dir: Path | None) -> None:
        self._server = server
        self.data_dir = data_dir

    def get(self, path: str) -> Any:
        return self._request("GET", path)

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
        server, headers = self._address()
        try:
            with httpx.stream(
                "GET", f"{server}/admin/v1{path}", headers=headers, timeout=httpx.Timeout(30.0, read=60.0)
            ) as response:
                if response.is_error:
                    response.read()
                    raise _error_of(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield _event(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise TransientError(f"the stream from {server} broke: {error}") from error

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends a request; returns the JSON of its answer.

        Raises:
            MooringError: the server answered with an error, or cannot be reached.
        """
        server, headers = self._address()
        try:
            response = httpx.request(
                method,
                f"{server}/admin/v1{path}",
                json=body,
                headers=headers,
                timeout=httpx.Timeout(30.0, read=600.0),
            )
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{server} is not an address: {error}") from error
        except httpx.TransportError as error:
            raise TransientError(
                f"no server answers at {server} ({error}): start one with `mooring serve`"
            ) from error
        if response.is_error:
            raise _error_of(response)
        return response.json() if response.content else None

    def _address(self) -> tuple[str, dict[str, str]]:
        """The server's address, and the headers that it wants."""
        settings = load_settings({"data_dir": self.data_dir})
        server = self._server or server_from_environment()
        server = server or published_http_url(settings.data_dir) or default_server_url(settings)
        key = admin_key_from_environment() or read_admin_key(settings.admin_key_path)
        return server.rstrip("/"), {"authorization": f"Bearer {key}"}


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
