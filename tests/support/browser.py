"""A real browser, Chromium without a window, for what only browsers do."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from websockets.sync.client import connect

from support.programs import need_program

__all__ = ["Browser", "Page"]

_TIMEOUT_S = 60.0


class Browser:
    """Chromium, driven over its DevTools protocol; a context manager that ends it.

    Args:
        hosts: addresses by host name, which the browser looks up nowhere else.
    """

    def __init__(self, hosts: Mapping[str, str]) -> None:
        rules = ",".join(f"MAP {name} {address}" for name, address in hosts.items())
        self._profile = tempfile.TemporaryDirectory(prefix="mooring-browser-")
        self._process = subprocess.Popen(
            [
                *(need_program("chromium", "chromium"), "--headless=new"),
                "--no-sandbox",  # which root cannot have
                *(
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--no-first-run",
                    "--disable-background-networking",
                ),
                *("--remote-debugging-port=0", f"--user-data-dir={self._profile.name}"),
                # Newer browsers keep pages of public addresses from loopback by themselves; older ones do not.
                "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
                f"--host-resolver-rules={rules}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._numbers = itertools.count(1)
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Browser:
        self._socket = self._ending.enter_context(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        helpers = psutil.Process(self._process.pid).children(recursive=True)
        self._ending.close()
        self._process.terminate()
        self._process.wait(_TIMEOUT_S)
        psutil.wait_procs(helpers, _TIMEOUT_S)  # they write into the profile to the last
        self._profile.cleanup()

    def open(self, url: str) -> Page:
        """Opens a page and waits until it has loaded, whatever the server says."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        page.load(url)
        return page

    def call(self, method: str, parameters: Mapping[str, Any], session: str | None = None) -> dict[str, Any]:
        """The result of a command of the protocol, once it is there."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message if session is None else message | {"sessionId": session}))
        while True:
            answer = json.loads(self._socket.recv(_TIMEOUT_S))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def wait_for(self, event: str, session: str) -> None:
        """Returns after the next event of this name."""
        while True:
            message = json.loads(self._socket.recv(_TIMEOUT_S))
            if message.get("method") == event and message.get("sessionId") == session:
                return

    def _connect(self) -> connect:
        told = Path(self._profile.name) / "DevToolsActivePort"
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not (told.is_file() and len(lines := told.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "the browser ended"
            assert time.monotonic() < deadline_s, "the browser did not start"
            time.sleep(0.05)
        return connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None)


class Page:
    """A page of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        browser.call("Page.enable", {}, session)

    def load(self, url: str) -> None:
        self._browser.call("Page.navigate", {"url": url}, self._session)
        self._browser.wait_for("Page.loadEventFired", self._session)

    def run(self, script: str) -> Any:
        """The value of an expression; if it is a promise, what comes of it."""
        result = self._browser.call(
            "Runtime.evaluate",
            {"expression": script, "awaitPromise": True, "returnByValue": True},
            self._session,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")
