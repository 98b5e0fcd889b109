"""The web UI beside a server: a process of its own, so that a fault in it touches nothing that serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping

from mooring.child import child_environment
from mooring.config import Settings
from mooring.server.exposure import within_reach

__all__ = ["UI_SOCKET", "UiProcess"]

logger = logging.getLogger(__name__)

UI_SOCKET = "ui.sock"
"""The Unix socket in the data folder over which ``mooring ui`` gets a one-time link."""

_CANNOT_LISTEN = 2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STOP_S = 3.0
_MAX_LINE_CHARS = 500


class UiProcess:
    """Starts the web UI and starts it again if it ends. If it cannot listen, that is said and left.

    Args:
        settings: the server's.
        addresses: of the server's doors.
    """

    def __init__(self, settings: Settings, addresses: Mapping[str, str]) -> None:
        self._settings = settings
        self._addresses = addresses
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; returns at once."""
        if self._settings.tls_client_ca is not None:
            logger.warning(
                "no web UI: clients of this server need a certificate, so run `mooring --client-certificate FILE ui`"
            )
            return
        self._task = asyncio.create_task(self._run(), name="ui")

    async def stop(self) -> None:
        """Ends the process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                said = await self._run_once()
            except OSError as error:
                logger.warning("the web UI cannot be started: %s", error)
                return
            status = self._process.returncode if self._process is not None else None
            if status == _CANNOT_LISTEN:
                logger.warning("no web UI: %s", said)
                return
            if loop.time() - began_s > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            logger.warning("the web UI ended with %s (%s); again in %g s", status, said, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_once(self) -> str:
        """Runs the process to its end; returns the last line that it wrote to its standard error."""
        config = {
            "server": within_reach(self._addresses["http"]),
            "port": self._settings.ui_port,
            "server_certificate": self._addresses.get("tls_certificate"),
            "socket": str(self._settings.data_dir.resolve() / UI_SOCKET),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "admin_ui", json.dumps(config), str(os.getpid())),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is the server's, which ends it
        )
        self._process = process
        assert process.stdout is not None
        assert process.stderr is not None
        said = asyncio.create_task(_last_line(process.stderr))
        if url := (await process.stdout.readline()).decode().strip():
            logger.info("web UI on %s: `mooring ui` opens it", url)
        await process.wait()
        return await said


async def _last_line(stream: asyncio.StreamReader) -> str:
    last = ""
    with contextlib.suppress(ValueError):  # a line without end
        while line := await stream.readline():
            last = line.decode(errors="replace").strip()[:_MAX_LINE_CHARS] or last
    return last
