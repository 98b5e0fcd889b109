"""A real ``mooring serve`` on free ports, for benchmarks, load tests and tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from mooring.errors import OperatorError

__all__ = ["RunningServer", "ServerFailedError"]

START_TIMEOUT_S = 90.0


class ServerFailedError(OperatorError):
    """The server did not start, or did not end; the message has the end of its log."""


class RunningServer:
    """Starts the server and waits until it is ready; a context manager that stops it with SIGTERM.

    Args:
        models: name to source folder, registered and deployed at start.
        flags: further command-line flags.
        environment: variables beside the process's own.
        config: a TOML file of settings.
        through: a command that replaces itself by the one that follows it, as ``env`` does.

    Raises:
        ServerFailedError: on entry, if the server is not ready in time; on exit, if it does not end.
    """

    def __init__(
        self,
        data_dir: Path,
        models: Mapping[str, Path],
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        config: Path | None = None,
        through: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self._log_path = data_dir.with_name(data_dir.name + ".log")
        self._log = self._log_path.open("w")
        named = [part for name, source in models.items() for part in ("--model", f"{name}={source}")]
        configured = ["--config", str(config)] if config is not None else []
        command = [
            *through, sys.executable, "-m", "mooring.cli", "serve", "--data-dir", str(data_dir),
            "--http-port", "0", "--grpc-port", "0", *configured, *named, *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self.client = httpx.Client(timeout=60, trust_env=False)  # for any thread; each new one costs 30 ms
        self.http_url = ""
        self.grpc_target = ""

    def __enter__(self) -> RunningServer:
        try:
            self._await_ready()
        except BaseException:  # interrupted, or terminated
            self.client.close()
            self.kill()
            self._log.close()
            raise
        return self

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        ports = self.data_dir / "server.json"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailedError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            if ports.exists():
                addresses = json.loads(ports.read_text())
                if addresses["pid"] == self.process.pid:
                    self.http_url = addresses["http"]
                    self.grpc_target = addresses["grpc"]
                    if self._ready():
                        return
            time.sleep(0.05)
        raise ServerFailedError(f"the server was not ready within {START_TIMEOUT_S} s:\n{self.log()}")

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        self.stop()

    def _ready(self) -> bool:
        try:
            return self.client.get(f"{self.http_url}/health/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def admin_key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.admin_key}"}
        return self.client.request(method, f"{self.http_url}/admin/v1{path}", json=body, headers=headers)

    def new_key(self, tenant: str) -> str:
        """Makes a tenant, and a key for it."""
        self.admin("POST", "/tenants", {"name": tenant}).raise_for_status()
        made = self.admin("POST", f"/tenants/{tenant}/keys", {})
        made.raise_for_status()
        key: str = made.json()["key"]
        return key

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.admin("GET", "/status").json()
        return found

    def transitions(self, *sources: str) -> tuple[float, int]:
        """Seconds and number of all transitions from ``sources`` to resident so far, by the server's own metrics."""
        page = self.client.get(f"{self.http_url}/metrics").text
        name, either = "mooring_residency_transition_seconds", "|".join(sources)
        pattern = rf'^{name}_(sum|count)\{{.*from="(?:{either})",to="resident"\}} (\S+)$'
        totals = {"sum": 0.0, "count": 0.0}
        for part, value in re.findall(pattern, page, re.MULTILINE):
            totals[part] += float(value)
        return totals["sum"], int(totals["count"])

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"] if worker["state"] == "ready"]

    def log(self) -> str:
        return self._log_path.read_text()[-8000:]

    def stop(self, timeout_s: float = 30.0) -> int:
        """Sends SIGTERM and returns the exit code; kills a server that does not end. Raises
        ``ServerFailedError``."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailedError(f"the server did not stop within {timeout_s} s:\n{self.log()}") from None
        finally:
            self._log.close()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
