"""What `mooring serve` refuses: one line on stderr that says what to do, exit code 1, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration

MOORING = Path(sys.executable).with_name("mooring")
FREE_PORTS = ["--http-port", "0", "--grpc-port", "0"]
NULL = ["--engine", "null", "--memory-budget", "64MiB"]


def refused(data_dir: Path, flags: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The last line on stderr of a server that did not start; the lines before it are its log."""
    before = set(psutil.Process().children())
    ended = subprocess.run(
        [MOORING, "serve", "--data-dir", str(data_dir), *flags],
        env={**os.environ, "XDG_CONFIG_HOME": str(data_dir / "no-config"), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    *log, last = ended.stderr.splitlines()
    assert last.startswith("mooring: ")
    assert all(line[:2] == "20" for line in log), "a log line begins with its date"
    left = set(psutil.Process().children()) - before  # others run for the whole session
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]
    assert not (data_dir / "server.json").exists()
    return last


# Of a kind that a case of `make test` shows.
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def busy_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (["--log-level", "loud"], {}, ["log_level", "debug"]),
        (["--memory-budget", "1KiB"], {}, ["memory budget of cpu", "2 MiB"]),
        ([], {"MOORING_HTP_PORT": "1"}, ["MOORING_HTP_PORT", "did you mean MOORING_HTTP_PORT?"]),
        slow([], {"MOORING_NULL__STEP_TIME_S": "-1"}, ["null.step_time_s"]),
        slow([], {"MOORING_CONFIG": "/nowhere.toml"}, ["no configuration file /nowhere.toml"]),
        (["--database-url", "nonsense"], {}, ["registry's database URL"]),
        (["--http-host", "0.0.0.0", "--behind-proxy"], {}, ["no API keys", "--allow-anonymous"]),
        slow(["--grpc-host", "::", "--behind-proxy"], {}, ["no API keys", "--allow-anonymous"]),
        (
            ["--http-host", "0.0.0.0", "--allow-anonymous"],
            {},
            ["0.0.0.0", "--tls-certificate", "--behind-proxy"],
        ),
        slow(["--require-keys", "--allow-anonymous"], {}, ["require_keys and allow_anonymous"]),
        slow(["--tls-certificate", "/no.pem"], {}, ["tls_certificate and tls_key"]),
        (["--tls-certificate", "/no.pem", "--tls-key", "/no.pem"], {}, ["/no.pem", "No such file"]),
        slow(["--allowed-host", "http://a.example"], {}, ["allowed_hosts", "without scheme and port"]),
        (["--model", "a=/nowhere"], {}, ["model a: there is nothing at /nowhere"]),
    ],
)
def test_settings_that_cannot_be_served_are_named(
    tmp_path: Path, flags: list[str], environment: dict[str, str], says: list[str]
) -> None:
    line = refused(tmp_path / "data", [*FREE_PORTS, *NULL, *flags], environment)
    for part in says:
        assert part in line


def test_a_data_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "data folder" in refused(tmp_path / "file" / "data", [*FREE_PORTS, *NULL])


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_a_port_in_use_is_named(tmp_path: Path, busy_port: str, door: str) -> None:
    flags = [*FREE_PORTS, *NULL, f"--{door}-port", busy_port]
    line = refused(tmp_path / "data", flags)
    assert f"{'HTTP' if door == 'http' else 'gRPC'} cannot listen on 127.0.0.1:{busy_port}" in line
