"""The data folder: it is its owner's alone, and what is published in it is believed while a server holds it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.errors import ConfigurationError
from mooring.server.data_dir import own_data_dir, published, published_addresses

ADDRESSES = {"http": "http://127.0.0.1:8000", "grpc": "127.0.0.1:8001"}
KILLED = """
import os, pathlib, signal, sys
from mooring.server.data_dir import own_data_dir, published
with own_data_dir(pathlib.Path(sys.argv[1])), published(pathlib.Path(sys.argv[1]), {"http": "http://127.0.0.1:8000"}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_addresses_are_believed_while_a_server_has_the_folder(tmp_path: Path) -> None:
    assert published_addresses(tmp_path) is None
    with own_data_dir(tmp_path):
        assert published_addresses(tmp_path) is None
        with published(tmp_path, ADDRESSES):
            assert published_addresses(tmp_path) == {"pid": os.getpid(), **ADDRESSES}
        assert published_addresses(tmp_path) is None


def test_a_killed_server_s_addresses_are_not_believed_nor_kept(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "server.json").read_text())["http"]
    assert published_addresses(tmp_path) is None
    with own_data_dir(tmp_path):  # the next server, whose doors are not open yet
        assert published_addresses(tmp_path) is None


def test_commands_that_look_keep_no_server_from_its_folder(tmp_path: Path) -> None:
    with (
        own_data_dir(tmp_path),
        pytest.raises(ConfigurationError, match="another server"),
        own_data_dir(tmp_path),
    ):
        pass
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            published_addresses(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(20):
            with own_data_dir(tmp_path):
                pass
    finally:
        ended.set()
        looking.join()


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


def test_a_folder_on_another_disk_is_closed(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "data"
    disk.mkdir()
    folder.symlink_to(disk)
    with own_data_dir(folder):
        pass
    assert mode(disk) == 0o700


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
