"""The web UI when something is away, and the page for visitors, in Chromium."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from support.fake_admin_api import ADMIN_KEY, FakeAdminApi
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.ui_browser import UiPage, chromium

from mooring.merge_patch import patched

pytestmark = pytest.mark.integration

STATE = {
    "server": {"version": "1", "ledger_mismatches": 0},
    "devices": {},
    "deployments": {"far": {"residency": "warm", "engine": "null", "enabled": True}},
    "figures": {"running": 3, "waiting": 0, "tokens_per_s": 1, "requests_per_s": 1},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextlib.contextmanager
def ui_process(server: str, *flags: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``mooring ui`` for a server; its address and process."""
    command = [sys.executable, "-m", "mooring.cli", "--server", server, "--data-dir", str(folder)]
    options: Sequence[str] = ("ui", "--no-browser", "--port", "0", *flags)
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1].partition("/#")[0], process
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def drawn(random: Random, depth: int = 3) -> Any:
    """A value of JSON, with nulls in objects, as a patch may have them."""
    if depth == 0 or random.random() < 0.4:
        return random.choice([None, 1, "x", True, [1, {"a": None}], 2.5])
    return {name: drawn(random, depth - 1) for name in "abcd" if random.random() < 0.6}


def test_the_pages_own_modules_count_as_the_server_does(browser: Browser, tmp_path: Path) -> None:
    random = Random(7)
    pairs = [[drawn(random), drawn(random)] for _ in range(300)]
    sizes = [0, 1023, 1024, 512 << 20, 1536 << 20, 3 << 40]
    changes = [
        {"at": "1970-01-01T00:01:40Z", "kind": "load"},
        {"at": "1970-01-01T00:01:50Z", "kind": "ready"},
        {"at": "1970-01-01T00:03:20Z", "kind": "evict"},
    ]
    api = FakeAdminApi(STATE)
    with api.running(), ui_process(api.url, folder=tmp_path) as (address, _):
        ui = UiPage(browser, address)
        ui.page.goto(address)
        found = ui.page.evaluate(
            """async ([pairs, sizes, changes]) => {
                const base = document.querySelector('script[src$="main.js"]').src;
                const load = (name) => import(new URL(name, base).href);
                const [{ mergePatch }, { size, parseSize, duration, percent }, { spans }] =
                    await Promise.all(['live.js', 'format.js', 'ui/timeline.js'].map(load));
                return {
                    merged: pairs.map(([before, patch]) => mergePatch(before, patch) ?? null),
                    sizes: sizes.map(size),
                    read: ['512MiB', '1.5 GiB', '2k', '7', 'x', '-1'].map(parseSize).map((each) => each || null),
                    durations: [0.0001, 0.24, 1.25, 59.6, 185, 7800, 90000].map(duration),
                    shares: [0.99999, 1, 0.0512, -0.4, null].map(percent),
                    spans: spans(changes, { residency: 'waking', since: 250 }, 105, 300),
                };
            }""",
            [pairs, sizes, changes],
        )
        ui.close()
    assert found["merged"] == [patched(before, patch) for before, patch in pairs]
    assert found["sizes"] == ["0 B", "1023 B", "1.00 KiB", "512 MiB", "1.50 GiB", "3.00 TiB"]
    assert found["read"] == [512 << 20, 1536 << 20, 2000, 7, None, None]
    assert found["durations"] == ["0 ms", "240 ms", "1.3 s", "1 min", "3 min 5 s", "2 h 10 min", "1 d 1 h"]
    assert found["shares"] == ["99.9 %", "100 %", "5.1 %", "-40 %", "–"]
    assert [(each["state"], each["from"], each["to"]) for each in found["spans"]] == [
        ("loading", 105, 110), ("resident", 110, 200), ("warm", 200, 250), ("waking", 250, 300),
    ]  # fmt: skip


def test_old_figures_are_shown_as_old_and_new_ones_come_back(browser: Browser, tmp_path: Path) -> None:
    api = FakeAdminApi(STATE, {"history": {"at": [], "series": {}}})
    with contextlib.ExitStack() as server:
        server.enter_context(api.running())
        with ui_process(api.url, folder=tmp_path) as (address, process):
            ui = UiPage(browser, address)
            ui.log_in(ADMIN_KEY)
            ui.page.get_by_role("link", name="Deployments").first.click()
            expect(ui.page.get_by_role("link", name="far")).to_be_visible()
            assert ui.faults == []
            api.publish({"deployments": {"far": {"residency": "waking"}}})
            expect(ui.page.get_by_role("row", name="far").get_by_text("waking").first).to_be_attached()
            server.close()
            expect(ui.page.get_by_role("alert")).to_contain_text("No live figures")
            expect(ui.page.locator("main .stale")).to_be_visible()
            expect(ui.page.get_by_role("link", name="far")).to_be_visible()
            process.kill()
            expect(ui.page.get_by_text("own process does not answer")).to_be_visible()
            ui.close()


def test_a_visitor_asks_with_their_own_key_and_sees_nothing_else(browser: Browser, tmp_path: Path) -> None:
    models = {"a": write_checkpoint(tmp_path / "a")}
    flags = ["--engine", "null", "--require-keys"]
    with RunningServer(tmp_path / "data", models, flags, NULL_ENVIRONMENT) as server:
        key = server.new_key("visitor")
        with ui_process(server.http_url, "--playground", folder=tmp_path / "none") as (address, _):
            ui = UiPage(browser, address, size="narrow", scheme="dark")
            page = ui.page
            page.goto(address)
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Go on").click()
            page.get_by_role("textbox", name="Message", exact=True).fill("Hello")
            page.keyboard.press("Enter")
            expect(page.locator(".turn.assistant .text")).not_to_be_empty()
            expect(page.locator("[data-rate]")).to_have_text(re.compile(r"\d"))
            assert ui.violations() == []
            assert ui.overflow <= 0
            assert page.get_by_role("link", name="Overview").count() == 0
            page.get_by_role("button", name="Leave").click()
            expect(page.get_by_label("API key")).to_be_visible()
            # A browser notes each refusal, and the page learns that it needs a key by one.
            assert [each for each in ui.faults if "401" not in each] == []
            ui.close()
