"""Settings decide who reaches the doors, whether keys are wanted, and which names are served."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.config import Settings
from mooring.errors import ConfigurationError
from mooring.loopback import is_loopback
from mooring.server.exposure import exposure_of


def exposure(**settings: Any) -> tuple[bool, bool, bool]:
    """(needs keys, is public, checks the names of hosts)."""
    found = exposure_of(Settings(**settings))
    return not found.allow_anonymous, found.is_public, found.checks_hosts


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (False, False, True)),
        ({"http_host": "::1", "grpc_host": "localhost"}, (False, False, True)),
        ({"require_keys": True}, (True, True, True)),
        ({"behind_proxy": True}, (True, True, False)),
        ({"behind_proxy": True, "allowed_hosts": ("llm.example",)}, (True, True, True)),
        ({"behind_proxy": True, "allow_anonymous": True}, (False, True, False)),
        ({"behind_proxy": True, "http_host": "0.0.0.0"}, (True, True, False)),
        ({"behind_proxy": True, "grpc_host": "::"}, (True, True, False)),
        ({"tls_certificate": "c", "tls_key": "k", "http_host": "10.0.0.1"}, (True, True, False)),
        ({"tls_certificate": "c", "tls_key": "k", "grpc_host": "10.0.0.1"}, (True, True, True)),
        ({"tls_certificate": "c", "tls_key": "k"}, (False, False, True)),
    ],
)
def test_who_reaches_the_doors(settings: dict[str, Any], expected: tuple[bool, bool, bool]) -> None:
    assert exposure(**settings) == expected


@pytest.mark.parametrize("settings", [{"http_host": "0.0.0.0"}, {"grpc_host": "::", "allow_anonymous": True}])
def test_a_public_address_needs_tls_or_a_proxy(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="--behind-proxy"):
        exposure_of(Settings(**settings))


def test_names_of_hosts_are_compared_in_one_spelling() -> None:
    found = exposure_of(Settings(allowed_hosts=("LLM.Example.",)))
    assert found.allowed_hosts == {"llm.example"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "example")],
)
def test_which_addresses_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
