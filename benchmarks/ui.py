"""The web UI's costs and delays: ``mooring bench ui``.

A real server with its UI and a real Chromium. Ten tabs follow a server that is busy; changes are made through the
admin API, and the time until a page shows them is taken in the page; the map of the memory is held against the admin
API at the same sequence number; and a first load is timed and weighed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from benchmarks.null_model import NullModel, make_null_model
from benchmarks.report import Report
from mooring.errors import ConfigurationError
from ops.running_server import RunningServer

__all__ = ["UiLoad", "main"]

_ADDRESS = re.compile(r"web UI on (http://[\w.:]+): ")
_PAGES = ("/", "/memory", "/timeline", "/deployments", "/deployments/a")
_TIMEOUT_S = 60.0
_NUM_STREAMS = 8
_MODELS = ("a", "b")
_BUDGET = "256MiB"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UiLoad:
    """The size of one run.

    Attributes:
        num_tabs: tabs open at a time.
        seconds: how long they follow the server.
        num_updates: changes whose way to a page is timed.
        num_loads: first loads that are timed.
        step_time_s: of the server's engine, which answers by the clock; 0 is as fast as it can.
    """

    num_tabs: int = 10
    seconds: float = 300.0
    num_updates: int = 40
    num_loads: int = 7
    step_time_s: float = 0.02

    @classmethod
    def quick(cls) -> UiLoad:
        return cls(num_tabs=3, seconds=6.0, num_updates=5, num_loads=2)


def main(out: Path, load: UiLoad, say: Say = print) -> Mapping[str, float]:
    """Runs the benchmark and writes its report; returns the figures.

    Raises:
        ConfigurationError: there is no Chromium.
    """
    if shutil.which("chromium") is None:
        raise ConfigurationError("the benchmark needs a browser: apt-get install chromium")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        model = make_null_model(Path(scratch) / "model")
        server = stack.enter_context(_server(Path(scratch), model, load))
        address = _ui_address(server)
        browser = stack.enter_context(_chromium())
        context = _logged_in(browser, address, server.admin_key)
        figures |= _first_loads(context, address, load, say)
        with _busy(server):
            figures |= _tabs(context, server, address, load, say)
            figures |= _updates(context, server, address, load, say)
            figures |= _memory(context, server, address, load, say)
    _write(out, load, figures)
    return figures


@contextlib.contextmanager
def _server(scratch: Path, model: NullModel, load: UiLoad) -> Iterator[RunningServer]:
    environment = {
        "MOORING_NULL__FIRST_TOKEN_ID": str(model.first_token_id),
        "MOORING_NULL__NUM_TOKEN_IDS": str(model.num_token_ids),
        "MOORING_NULL__STEP_TIME_S": str(load.step_time_s),
    }
    flags = ["--engine", "null", "--memory-budget", _BUDGET, "--ui", "--ui-port", "0"]
    with RunningServer(scratch / "data", dict.fromkeys(_MODELS, model.folder), flags, environment) as server:
        yield server


def _ui_address(server: RunningServer) -> str:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while (found := _ADDRESS.search(server.log())) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the web UI does not listen:\n{server.log()}")
        time.sleep(0.1)
    return found[1]


@contextlib.contextmanager
def _chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


def _logged_in(browser: Browser, address: str, key: str) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Admin key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.locator(".tiles").wait_for()
    page.close()
    return context


def _first_loads(context: BrowserContext, address: str, load: UiLoad, say: Say) -> dict[str, float]:
    """Bytes on the wire, and seconds to the first live figures, of a page that has nothing stored."""
    seconds, kilobytes = [], []
    for _ in range(load.num_loads):
        page = context.new_page()
        protocol = context.new_cdp_session(page)
        protocol.send("Network.enable")
        protocol.send("Network.setCacheDisabled", {"cacheDisabled": True})
        received: list[float] = []
        protocol.on(
            "Network.loadingFinished", lambda told, into=received: into.append(told["encodedDataLength"])
        )
        page.add_init_script(
            """new MutationObserver((_, self) => {
                if (!document.querySelector('.tiles .value')) return;
                self.disconnect();
                requestAnimationFrame(() => { window.shownAt = performance.now(); });
            }).observe(document, {childList: true, subtree: true});"""
        )
        page.goto(address)
        seconds.append(_awaited(page, "shownAt") / 1000)
        page.wait_for_load_state("networkidle")
        kilobytes.append(sum(received) / 1000)
        page.close()
    say(f"first load: {statistics.median(kilobytes):.0f} kB, {statistics.median(seconds):.2f} s")
    return {"ui_first_load_kb": statistics.median(kilobytes), "ui_first_load_s": statistics.median(seconds)}


@contextlib.contextmanager
def _busy(server: RunningServer) -> Iterator[None]:
    """Keeps streams running on both models, so that figures and memory change all the time."""
    stop = threading.Event()

    async def stream(client: httpx.AsyncClient, number: int) -> None:
        body = {"model": _MODELS[number % 2], "prompt": f"{number} " * 40, "max_tokens": 120, "stream": True}
        while not stop.is_set():
            async with client.stream("POST", f"{server.http_url}/v1/completions", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    pass

    async def run() -> None:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            await asyncio.gather(*(stream(client, number) for number in range(_NUM_STREAMS)))

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_TIMEOUT_S)


def _awaited(page: Page, name: str) -> float:
    """A number that a page's script sets, once it is there. Playwright's own way would break the page's policy."""
    script = """(name) => new Promise((done) => {
        const look = () => (window[name] ? done(window[name]) : setTimeout(look, 5));
        look();
    })"""
    return float(page.evaluate(script, name))


def _shown_seq(page: Page) -> int:
    """The sequence number that a tab has drawn, by its own store."""
    script = """async () => {
        const base = document.querySelector('script[src$="main.js"]').src;
        return (await import(new URL('store.js', base).href)).live.value.seq;
    }"""
    return int(page.evaluate(script))


def _tabs(
    context: BrowserContext, server: RunningServer, address: str, load: UiLoad, say: Say
) -> dict[str, float]:
    """The cost of many tabs for the UI's process, and how often one of them stalls."""
    pages = []
    for number in range(load.num_tabs):
        page = context.new_page()
        page.goto(address + _PAGES[number % len(_PAGES)])
        page.get_by_role("status").filter(has_text="Live").first.wait_for()
        pages.append(page)
    process = _ui_process(server)
    num_stalls = 0
    began_s, used_s = time.monotonic(), sum(process.cpu_times()[:2])
    seen = [_shown_seq(page) for page in pages]
    while (left_s := began_s + load.seconds - time.monotonic()) > 0:
        pages[0].wait_for_timeout(1000 * min(5.0, left_s))
        shown = [_shown_seq(page) for page in pages]
        num_stalls += sum(now <= before for before, now in zip(seen, shown, strict=True))
        seen = shown
    share = (sum(process.cpu_times()[:2]) - used_s) / (time.monotonic() - began_s)
    for page in pages:
        page.close()
    say(f"{load.num_tabs} tabs: {100 * share:.2f} % of a core, {num_stalls} stalls")
    return {"ui_cpu_10_tabs": share, "ui_stalls": num_stalls}


def _ui_process(server: RunningServer) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    return next(each for each in children if "admin_ui" in each.cmdline())


def _updates(
    context: BrowserContext, server: RunningServer, address: str, load: UiLoad, say: Say
) -> dict[str, float]:
    """Seconds from the call that changes something on the server to the page that shows it."""
    page = context.new_page()
    page.goto(f"{address}/deployments")
    page.get_by_role("button", name="Pin a").wait_for()
    delays = []
    for number in range(load.num_updates):
        is_pinned = number % 2 == 0
        page.evaluate(
            """(name) => {
                const button = () => document.querySelector(`button[aria-label="${name}"]`);
                window.seenAt = 0;
                new MutationObserver((_, self) => {
                    if (!button()) return;
                    self.disconnect();
                    requestAnimationFrame(() => { window.seenAt = Date.now(); });
                }).observe(document.body, {childList: true, subtree: true, attributes: true, characterData: true});
            }""",
            "Unpin a" if is_pinned else "Pin a",
        )
        asked_s = time.time()
        server.admin("PATCH", "/deployments/a", {"pinned": is_pinned}).raise_for_status()
        delays.append(_awaited(page, "seenAt") / 1000 - asked_s)
        page.wait_for_timeout(50 + 37 * (number % 7))  # so that changes fall anywhere between two patches
    page.close()
    p95_s = sorted(delays)[max(0, round(0.95 * len(delays)) - 1)]
    say(f"a change is shown after {statistics.median(delays):.3f} s, p95 {p95_s:.3f} s")
    return {"ui_update_s_p50": statistics.median(delays), "ui_update_s_p95": p95_s}


def _memory(
    context: BrowserContext, server: RunningServer, address: str, load: UiLoad, say: Say
) -> dict[str, float]:
    """How often the map of the memory differs from the admin API at the same sequence number, or its sum from the
    budget."""
    page = context.new_page()
    page.goto(f"{address}/memory")
    page.locator("tr[data-segment]").first.wait_for()
    num_samples = num_wrong = num_gone = 0
    for _ in range(2 * load.num_updates):
        page.wait_for_timeout(100)
        shown = page.evaluate(
            """() => ({
                seq: document.querySelector('[data-seq]').dataset.seq,
                rows: [...document.querySelectorAll('[data-device] tr[data-segment]')].map((row) => [
                    row.closest('[data-device]').dataset.device, row.dataset.segment,
                    Number(row.dataset.promisedBytes),
                    row.dataset.usedBytes === '' ? null : Number(row.dataset.usedBytes)]),
            })"""
        )
        told = server.admin("GET", f"/devices?seq={shown['seq']}")
        if told.status_code == 404:  # it keeps the last ones alone
            num_gone += 1
            continue
        num_samples += 1
        num_wrong += not _agree(shown["rows"], told.json())
    page.close()
    say(f"memory map: {num_wrong} of {num_samples} samples differ")
    return {"ui_memory_samples": num_samples, "ui_memory_wrong": num_wrong}


def _agree(rows: list[Any], devices: list[Any]) -> bool:
    told = [
        [device["name"], name, each["promised_bytes"], each.get("used_bytes")]
        for device in devices
        for name, each in device["segments"].items()
    ]
    sums = {
        device["name"]: sum(row[2] for row in rows if row[0] == device["name"]) == device["budget_bytes"]
        for device in devices
    }
    return sorted(rows, key=lambda row: row[:2]) == sorted(told, key=lambda row: row[:2]) and all(
        sums.values()
    )


def _write(out: Path, load: UiLoad, figures: Mapping[str, float]) -> None:
    report = Report(out, "The web UI: what it costs, and how soon it shows a change")
    report.text(
        f"A server with the null engine and {_NUM_STREAMS} streams on two models; {load.num_tabs} tabs in Chromium "
        f"for {load.seconds:g} s. `ui_cpu_10_tabs` is the UI process's share of a core. A stall is a tab that draws "
        "nothing new for five seconds. `ui_update_s_p95` is from the call of the admin API to the frame that shows "
        "the change. `ui_memory_wrong` counts samples of the memory map that differ from `/admin/v1/devices` at the "
        "same sequence number, or whose sum is not the budget. First loads have nothing stored and end with the "
        "first live figures."
    )
    for name, value in figures.items():
        report.figure(name, value)
    report.write()
