"""The databases that a registry runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.kinds import KINDS

__all__ = ["DATABASES", "ENGINES", "new_database_url"]

ENGINES = tuple(KINDS)

DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.integration))


def new_database_url(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """SQLAlchemy's URL of an empty database of one of the kinds."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/registry.db"
    cluster = request.getfixturevalue("postgresql")
    return str(cluster.url(cluster.emptied_database()))
