"""What all tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.databases import DATABASES, new_database_url
from support.postgresql import PostgresCluster, postgres_cluster

# In CI the same examples every time, so that a change is judged by what it changed; at a desk new ones. How long one
# takes says more of the machine than of the code.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("desk", unhurried)
settings.register_profile("ci", unhurried, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


# Tests run beside each other and compute little: if two processes have as many threads as there are cores, each waits
# for the other's, and a product of a few rows takes ten times as long. This holds for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spares what the tests import and are, all of which stays, the collections of garbage: they would take a quarter
    of the time here, and a tenth of what the property tests compute."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def one_thread_of_torch() -> None:
    """One thread in the tests' own process, whatever the test before has set."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresCluster]:
    """A PostgreSQL server of this session's own."""
    with postgres_cluster() as cluster:
        yield cluster


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for a registry; the test runs once on each kind."""
    return new_database_url(request.param, tmp_path, request)
