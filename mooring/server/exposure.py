"""The reach of the server's doors, as its settings make it, and conditions of being open to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mooring.config import Settings
from mooring.errors import ConfigurationError
from mooring.loopback import is_loopback
from router.request.exposure import Exposure

if TYPE_CHECKING:  # it takes longer to import than all that a command needs, and commands import this module
    from model_registry.registry import Registry

__all__ = ["check_keys", "exposure_of", "within_reach"]


def exposure_of(settings: Settings) -> Exposure:
    """The reach of the doors.

    Raises:
        ConfigurationError: other machines would reach a door, and nothing protects what they send.
    """
    public = [host for host in (settings.http_host, settings.grpc_host) if not is_loopback(host)]
    if public and settings.tls is None and not settings.behind_proxy:
        raise ConfigurationError(
            f"{public[0]} is open to other machines, and keys and texts would travel unencrypted: give "
            "--tls-certificate and --tls-key, or --behind-proxy if a reverse proxy, or a network that is "
            "yours alone, protects them"
        )
    wants_keys = bool(public) or settings.require_keys or settings.behind_proxy
    return Exposure(
        allow_anonymous=settings.allow_anonymous or not wants_keys,
        is_public=wants_keys,
        behind_proxy=settings.behind_proxy,
        checks_hosts=bool(settings.allowed_hosts)
        or (is_loopback(settings.http_host) and not settings.behind_proxy),
        allowed_hosts=frozenset(settings.allowed_hosts),
    )


def check_keys(settings: Settings, exposure: Exposure, registry: Registry) -> None:
    """Raises ConfigurationError if others could reach the doors and nobody could have a key."""
    if exposure.allow_anonymous or all(
        is_loopback(each) for each in (settings.http_host, settings.grpc_host)
    ):
        return
    if not registry.has_valid_key():
        raise ConfigurationError(
            "the doors are open to other machines and there are no API keys: start on 127.0.0.1, make one "
            "with `mooring tenants create NAME` and `mooring tenants keys create NAME`, and start again; or "
            "give --allow-anonymous"
        )


def within_reach(url: str) -> str:
    """An address at which this machine reaches a server that listens on all of its addresses."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
