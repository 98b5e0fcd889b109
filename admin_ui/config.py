"""Settings of the process of the web UI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mooring.errors import ConfigurationError
from mooring.loopback import is_loopback

__all__ = ["UiConfig"]

_MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107


@dataclass(frozen=True, slots=True)
class UiConfig:
    """Addresses and limits of one UI process. It holds no key: those come with the log-ins.

    Attributes:
        server: base address of the server.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        playground: whether it is the page for visitors, who have an API key and not the admin key.
        allowed_hosts: names, without ports, under which it answers beside those of loopback.
        server_certificate: the only certificate that the server may have; None trusts the system's authorities.
        client_certificate: PEM file to show the server; None if it wants none.
        tls_certificate: PEM file for TLS to browsers; None for none.
        tls_key: PEM file of its private key.
        behind_proxy: whether a reverse proxy with TLS passes all requests on.
        socket: Unix socket over which its user gets one-time links; None for none.
        session_idle_s: seconds without use after which a log-in ends.
    """

    server: str
    host: str = "127.0.0.1"
    port: int = 8080
    playground: bool = False
    allowed_hosts: tuple[str, ...] = ()
    server_certificate: str | None = None
    client_certificate: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    behind_proxy: bool = False
    socket: str | None = None
    session_idle_s: float = 3600.0

    def __post_init__(self) -> None:
        """Raises ConfigurationError if others could reach it and nothing protects what they send."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigurationError("--tls-certificate and --tls-key belong together: give both or neither")
        if is_loopback(self.host):
            return
        if self.tls_certificate is None and not self.behind_proxy:
            raise ConfigurationError(
                f"{self.host} is open to other machines, and keys would travel unencrypted: give "
                "--tls-certificate and --tls-key, or --behind-proxy if a reverse proxy protects them"
            )
        if not self.allowed_hosts:
            raise ConfigurationError(
                f"{self.host} is open to other machines: name what browsers call it with --allowed-host"
            )

    @property
    def url(self) -> str:
        """Its address for browsers of this machine, or for whom ``allowed_hosts`` names first."""
        scheme = "https" if self.is_secret else "http"
        name = self.allowed_hosts[0] if self.allowed_hosts else self.host
        return f"{scheme}://{f'[{name}]' if ':' in name else name}:{self.port}"

    @property
    def opens_server(self) -> bool:
        """Whether it lets other machines reach a server that they do not reach themselves."""
        is_open = not is_loopback(self.host) or self.behind_proxy
        return is_open and is_loopback(urlsplit(self.server).hostname or "")

    @property
    def is_secret(self) -> bool:
        """Whether browsers reach it over TLS."""
        return self.tls_certificate is not None or self.behind_proxy

    @property
    def usable_socket(self) -> Path | None:
        """The Unix socket, if its path is not too long for one."""
        fits = self.socket is not None and len(self.socket.encode()) <= _MAX_SOCKET_PATH
        return Path(self.socket) if self.socket is not None and fits else None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> UiConfig:
        values: Mapping[str, Any] = json.loads(text)
        return cls(**{**values, "allowed_hosts": tuple(values.get("allowed_hosts", ()))})
