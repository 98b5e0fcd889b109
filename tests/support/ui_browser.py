"""The web UI in a real browser: Chromium by playwright, which notes all that a page should not do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from support.programs import need_program

__all__ = ["UiPage", "chromium"]

_TIMEOUT_MS = 60_000
SIZES = {"wide": (1280, 860), "narrow": (390, 844)}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    expect.set_options(timeout=_TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=need_program("chromium", "chromium"),
            args=["--no-sandbox", "--disable-dev-shm-usage"],  # root cannot have a sandbox
        )
        try:
            yield browser
        finally:
            browser.close()


class UiPage:
    """A page of one browser profile, at one width and in one scheme.

    Attributes:
        faults: what a page should not do: messages in the console, errors, requests to others.
    """

    def __init__(self, browser: Browser, url: str, *, size: str = "wide", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self._context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.url = url
        self.width = width
        self.faults: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(_TIMEOUT_MS)
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", self._note_request)

    def _note_request(self, request: Request) -> None:
        asked = urlsplit(request.url)
        if asked.scheme not in ("data", "blob") and asked.netloc != urlsplit(self.url).netloc:
            self.faults.append(f"request: {request.url}")

    def log_in(self, key: str) -> None:
        """Logs in with the admin key, and waits for the first live figures."""
        self.page.goto(self.url)
        self.page.get_by_label("Admin key").fill(key)
        self.page.get_by_role("button", name="Log in").click()
        self.await_live()

    def open(self, path: str) -> None:
        """Loads a page anew and waits for its figures."""
        self.page.goto(self.url + path)
        self.await_live()

    def await_live(self) -> None:
        self.page.locator("main .stale").wait_for(state="detached")
        self.page.get_by_role("status").filter(has_text="Live").first.wait_for()
        self.page.locator("main .skeleton").first.wait_for(state="detached")

    def violations(self) -> list[str]:
        """What axe finds wrong with the page as it is shown."""
        found = Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        wide: int = self.page.evaluate("document.documentElement.scrollWidth")
        return wide - self.width

    def close(self) -> None:
        self._context.close()
