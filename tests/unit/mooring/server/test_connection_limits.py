"""Limits of connections follow from the limit of open files and from the settings."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from mooring.config import Settings
from mooring.errors import ConfigurationError
from mooring.server.connection_limits import ConnectionLimits, connection_limits, raise_file_limit


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Soft and hard limit of open files, of which the last one counts."""
    given = [(1000, 1000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: given[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: given.append(wanted))
    monkeypatch.setattr("mooring.server.connection_limits.num_open_files", lambda: 50)
    return given


def of(**settings: Any) -> ConnectionLimits:
    return connection_limits(Settings(**settings))


def test_two_doors_leave_a_reserve_of_open_files(limits: list[tuple[int, int]]) -> None:
    assert of() == ConnectionLimits(350, 175)  # (1000 - 250 for what comes later - 50 that are open) / 2
    limits.append((10**6, 10**6))
    assert of() == ConnectionLimits(4096, 2048)
    limits.append((60, 60))
    assert of() == ConnectionLimits(4, 4)


def test_settings_override_and_a_proxy_is_one_address(limits: list[tuple[int, int]]) -> None:
    assert of(max_connections=100) == ConnectionLimits(100, 50)
    assert of(max_connections=100, max_connections_per_address=7) == ConnectionLimits(100, 7)
    assert of(max_connections=100, behind_proxy=True) == ConnectionLimits(100, None)
    with pytest.raises(ConfigurationError, match=r"max_connections is 351.*ulimit -n"):
        of(max_connections=351)


def test_the_limit_of_open_files_is_raised_to_the_hard_one(limits: list[tuple[int, int]]) -> None:
    limits.append((256, 4000))
    raise_file_limit()
    assert limits[-1] == (4000, 4000)
