"""Pictures of the web UI for the documentation, taken from the real UI of a real server: ``make pictures``.

A server serves the three sample models from a budget for two of them, tenants with SLO classes ask all three, and
each page is taken when it has something to show. The animation is a sequence of such pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page
from support.paths import ROOT
from support.running_server import RunningServer
from support.ui_browser import chromium
from support.ui_server import server_with_ui

IMAGES = ROOT / "docs" / "images"
MODELS = ("smollm2", "pythonlm", "draft")
CLASSES = (
    {"name": "gold", "ttft_target_s": 2.0, "tpot_target_s": 0.2, "goal": 0.95, "priority": 10},
    {"name": "silver", "ttft_target_s": 6.0, "tpot_target_s": 0.5, "goal": 0.9},
)
TENANTS = {"acme": "gold", "beta": "silver"}
PROMPTS = ("Name three colours.", "def read_lines(path):", "What is the capital of France?", "import os")
FRAME_MS = 90
WIDTH, HEIGHT = 1280, 800


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-dir", type=Path, help="with samples that are made already; a fresh one if not given"
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="of load before the first picture")
    parser.add_argument("--no-animation", action="store_true")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        data_dir = Path(scratch) / "data"
        if given.data_dir is not None:
            shutil.copytree(given.data_dir / "samples", data_dir / "samples")
        served = stack.enter_context(server_with_ui(data_dir, {}, ["--samples"]))
        server, address = served
        await_models(server)
        keys = make_tenants(server)
        browser = stack.enter_context(chromium())
        with load(server, keys):
            time.sleep(given.seconds)
            take_pictures(browser, server, address)
        if not given.no_animation:
            animate(browser, server, address)


def await_models(server: RunningServer) -> None:
    """Returns when all three models can be asked."""
    while True:
        found = {each["id"] for each in server.client.get(f"{server.http_url}/v1/models").json()["data"]}
        if found >= set(MODELS):
            return
        time.sleep(1.0)


def make_tenants(server: RunningServer) -> dict[str, str]:
    for each in CLASSES:
        server.admin("POST", "/slo-classes", each).raise_for_status()
    keys = {name: server.new_key(name) for name in TENANTS}
    for name, slo_class in TENANTS.items():
        server.admin("PATCH", f"/tenants/{name}", {"slo_class": slo_class}).raise_for_status()
    return keys


@contextlib.contextmanager
def load(server: RunningServer, keys: dict[str, str]) -> Iterator[None]:
    """Requests of the tenants for all three models, two at a time."""
    stop = threading.Event()

    def ask(number: int, key: str) -> None:
        for turn in itertools.count(number):
            if stop.wait(0.7):
                return
            body = {"model": MODELS[turn % 3], "prompt": PROMPTS[turn % 4], "max_tokens": 16}
            with contextlib.suppress(httpx.HTTPError):
                server.client.post(
                    f"{server.http_url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
                )

    threads = [
        threading.Thread(target=ask, args=(3 * number, key), daemon=True)
        for number, key in enumerate(keys.values())
    ]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stop.set()
        for each in threads:
            each.join(60)


def operator(browser: Browser, server: RunningServer, address: str) -> Page:
    """A page that is logged in."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Admin key").fill(server.admin_key)
    page.get_by_role("button", name="Log in").click()
    page.locator(".tiles").wait_for()
    return page


def take_pictures(browser: Browser, server: RunningServer, address: str) -> None:
    page = operator(browser, server, address)
    page.wait_for_timeout(6000)
    take(page, "overview")
    page.goto(f"{address}/memory")
    page.locator("tr[data-segment]").first.wait_for()
    take(page, "memory")
    page.goto(f"{address}/timeline")
    page.get_by_role("button", name="5 min").click()
    page.locator(".change").first.wait_for()
    evictions = page.get_by_role("button", name=", evict")
    (evictions if evictions.count() else page.locator(".change")).last.press("Enter")
    take(page, "residency")
    page.goto(f"{address}/playground?a=smollm2&b=draft")
    page.get_by_label("Most tokens").fill("24")
    chat(page, "What is the capital of France?")
    take(page, "playground")
    page.context.close()


def chat(page: Page, text: str) -> None:
    """Sends a message, and returns when all sides have answered."""
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Send").wait_for(timeout=120_000)


def picture(page: Page) -> Image.Image:
    page.mouse.move(0, 0)
    image: Image.Image = Image.open(io.BytesIO(page.screenshot()))
    return image.convert("RGB")


def take(page: Page, name: str) -> None:
    """Keeps a picture of the page, with as many colours as it needs."""
    page.wait_for_timeout(600)
    small = picture(page).quantize(192, dither=Image.Dither.NONE)
    small.save(IMAGES / f"{name}.png", optimize=True)
    print(f"{name}.png: {(IMAGES / f'{name}.png').stat().st_size / 1000:.0f} kB", flush=True)


def animate(browser: Browser, server: RunningServer, address: str) -> None:
    """Chat side by side, one model asleep, one woken, the reason shown: as an animated WebP."""
    page = operator(browser, server, address)
    frames: list[tuple[Image.Image, int]] = []

    def hold(milliseconds: int) -> None:
        frames.append((picture(page).resize((960, 600), Image.Resampling.LANCZOS), milliseconds))

    page.goto(f"{address}/playground?a=smollm2&b=draft")
    page.get_by_label("Most tokens").fill("24")
    page.get_by_role("textbox", name="Message", exact=True).fill("Name three colours.")
    hold(1200)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    while page.get_by_role("button", name="Stop").count() and len(frames) < 120:
        hold(FRAME_MS)
        page.wait_for_timeout(FRAME_MS)
    hold(2500)
    page.goto(f"{address}/deployments")
    page.get_by_role("button", name="Sleep smollm2").wait_for()
    hold(1200)
    for name in ("Sleep smollm2", "Wake pythonlm"):
        button = page.get_by_role("button", name=name)
        if button.count():
            button.click()
            for _ in range(8):
                hold(150)
                page.wait_for_timeout(150)
    hold(1500)
    page.goto(f"{address}/timeline")
    page.get_by_role("button", name="5 min").click()
    page.get_by_role("button", name="smollm2, sleep").last.press("Enter")
    page.wait_for_timeout(600)
    hold(4000)
    first, *rest = [image for image, _ in frames]
    first.save(
        IMAGES / "tour.webp",
        save_all=True,
        append_images=rest,
        duration=[milliseconds for _, milliseconds in frames],
        loop=0,
        quality=70,
        method=4,
    )
    print(f"tour.webp: {(IMAGES / 'tour.webp').stat().st_size / 1000:.0f} kB", flush=True)
    page.context.close()


if __name__ == "__main__":
    main()
