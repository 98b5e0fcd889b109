"""The data folder is its owner's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.server.data_dir import own_data_dir


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_and_all_that_is_made_afterwards_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with own_data_dir(folder):
        (folder / "registry.sqlite3").touch()
        (folder / "store").mkdir()
    assert {path.name: mode(path) for path in (folder, *folder.iterdir())} == {
        "data": 0o700,
        "registry.sqlite3": 0o600,
        "server.lock": 0o600,
        "store": 0o700,
    }


def test_a_folder_of_an_earlier_release_is_closed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (folder / "store").mkdir(parents=True)
    elsewhere.touch()
    (folder / "registry.sqlite3").touch()
    (folder / "link").symlink_to(elsewhere)
    assert mode(folder) == 0o755
    with own_data_dir(folder):
        pass
    assert (mode(folder), mode(folder / "store"), mode(folder / "registry.sqlite3")) == (0o700, 0o700, 0o600)
    assert mode(elsewhere) == 0o644


def test_a_folder_that_is_everybodys_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with own_data_dir(tmp_path):
        pass
    assert mode(tmp_path) == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 12345, -1)
    with own_data_dir(folder):
        pass
    assert mode(folder) == 0o755
    assert "not ours" in caplog.text
