"""The health check of the containers, against the HTTP door."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.certificates import make_certificates

from mooring.config import TlsFiles
from mooring.server.door_config import HttpLimits
from mooring.server.doors import http_door
from mooring.units import KIB

pytestmark = pytest.mark.integration

LIMITS = HttpLimits(KIB, max_head_bytes=64 * KIB, request_timeout_s=60, max_reader_stall_s=60)


async def probed(folder: Path, url: str) -> tuple[int | None, str]:
    """Status of the probe's process and what it says, while a server at this address has the folder."""
    (folder / "server.json").write_text(json.dumps({"http": url}))
    with (folder / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        probe = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mooring.server.probe", str(folder)), stderr=asyncio.subprocess.PIPE
        )
        _, said = await probe.communicate()
    return probe.returncode, said.decode()


@pytest.mark.parametrize("kind", ["plain", "tls", "mutual"])
async def test_a_server_that_is_ready_is_healthy_whatever_it_speaks(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which is not for this machine itself
    files = None
    if kind != "plain":
        made = make_certificates(tmp_path / "tls")
        files = TlsFiles(made.server, made.server_key, made.authority if kind == "mutual" else None)
    is_ready = True

    def ready(_: Request) -> Response:
        return Response(status_code=200 if is_ready else 503)

    app = Starlette(routes=[Route("/health/ready", ready)])
    async with http_door(app, "127.0.0.1", 0, LIMITS, tls=files) as url:
        assert await probed(tmp_path, url) == (0, "")
        is_ready = False
        status, said = await probed(tmp_path, url)
        if kind != "mutual":
            assert status == 1
            assert "503" in said
    status, said = await probed(tmp_path, url)
    assert status == 1
    assert "refused" in said


async def test_a_server_that_has_gone_is_not_healthy(tmp_path: Path) -> None:
    (tmp_path / "server.lock").touch()  # which nobody holds
    (tmp_path / "server.json").write_text(json.dumps({"http": "http://127.0.0.1:1"}))
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mooring.server.probe", str(tmp_path)), stderr=asyncio.subprocess.PIPE
    )
    _, said = await probe.communicate()
    assert probe.returncode == 1
    assert b"no server uses" in said
