"""The web UI in Chromium against a real server: what an operator does, from registering a model to revoking a key,
and how each page stands before a person who cannot see it, or only a little of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from support.running_server import RunningServer
from support.sample_folders import smollm2, trained_samples
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.ui_browser import UiPage, chromium
from support.ui_server import server_with_ui
from support.until import until

pytestmark = pytest.mark.integration

AT_ONCE_S = 2.0  # half of what 400 tokens take
PAGES = (
    "/", "/memory", "/timeline", "/deployments", "/deployments/one", "/register", "/playground?a=one&b=two",
    "/tenants", "/tenants/shown", "/classes",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_checkpoint(root / name, seed) for seed, name in enumerate(("one", "two", "three"))}


@pytest.fixture(scope="module")
def served(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, str]]:
    data_dir = tmp_path_factory.mktemp("ui") / "data"
    models = {name: folders[name] for name in ("one", "two")}
    environment = {**NULL_ENVIRONMENT, "MOORING_NULL__STEP_TIME_S": "0.01"}
    with server_with_ui(data_dir, models, ["--engine", "null"], environment) as found:
        found[0].new_key("shown")
        slo = {"name": "gold", "ttft_target_s": 1.0, "tpot_target_s": 0.1}
        found[0].admin("POST", "/slo-classes", slo).raise_for_status()
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def operator(browser: Browser, served: tuple[RunningServer, str]) -> Iterator[UiPage]:
    ui = UiPage(browser, served[1])
    ui.log_in(served[0].admin_key)
    yield ui
    ui.close()


@pytest.fixture(params=["null", pytest.param("samples", marks=pytest.mark.slow)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, str, Path]]:
    """A server, the address of its UI, and a model to register: of the null engine, or a sample for the torch one."""
    if request.param == "null":
        folders = request.getfixturevalue("folders")
        yield *request.getfixturevalue("served"), folders["three"]
        return
    root = tmp_path_factory.mktemp("samples")
    source = smollm2(root / "smollm2")
    with server_with_ui(root / "data", trained_samples(), ["--memory-budget", "1200MiB"]) as found:
        yield *found, source


def residency(page: Page, name: str) -> str:
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
    return row.locator(".wide-only .badge").first.inner_text()


def test_from_a_registration_to_a_revoked_key(
    browser: Browser, place: tuple[RunningServer, str, Path]
) -> None:
    server, address, source = place
    operator = UiPage(browser, address)
    operator.log_in(server.admin_key)
    page = operator.page

    page.get_by_role("link", name="Register", exact=True).click()
    page.get_by_label("Source").fill(str(source))
    page.get_by_role("textbox", name="Name").fill("three")
    expect(page.locator(".fit").first).to_be_visible()
    page.get_by_role("button", name="Register three").click()
    done = page.locator("[data-registration=three] .badge.done")
    expect(done).to_be_visible()
    page.reload()
    expect(done).to_be_visible()

    page.get_by_role("link", name="Deployments").first.click()
    page.get_by_role("button", name="New deployment").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("again")
    dialog.get_by_label("Model").select_option("three")
    dialog.get_by_role("button", name="Deploy").click()
    expect(page.get_by_role("heading", name="again")).to_be_visible()
    page.get_by_role("button", name="Wake again").click()
    expect(page.get_by_text("again is resident.")).to_be_visible()

    operator.open("/playground?a=three&b=again")
    page.get_by_label("Most tokens").fill("24")
    page.get_by_role("textbox", name="Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    for side in ("A", "B"):
        box = page.locator(f"[data-side={side}]")
        expect(box.locator(".turn.assistant .text")).not_to_be_empty()
        expect(box.locator("[data-rate]")).to_have_text(re.compile(r"\d"))
        expect(box.locator("[data-ttft]")).to_have_text(re.compile(r"\d+(\.\d)? (ms|s)"))
    for way in ("curl", "Python", "tritonclient"):
        page.locator("[data-side=A]").get_by_role("button", name="Code").click()
        page.get_by_role("button", name=way, exact=True).click()
        expect(page.locator("pre.code")).to_contain_text("three")
        page.get_by_role("button", name="Close", exact=True).click()

    operator.open("/deployments")
    wake, sleep = (page.get_by_role("button", name=f"{verb} again") for verb in ("Wake", "Sleep"))
    expect(wake.or_(sleep)).to_be_visible()
    if wake.is_visible():  # the budget of the samples does not hold both sides
        wake.click()
    sleep.click()
    expect(page.get_by_text("again sleeps.")).to_be_visible()
    until(lambda: residency(page, "again") in ("warm", "cold"), "the page shows that it sleeps")

    operator.open("/timeline")
    page.get_by_role("button", name=re.compile("again, (sleep|unload)")).last.press("Enter")
    expect(page.get_by_role("region", name="Why").or_(page.locator(".card", has_text="Why"))).to_contain_text(
        "again"
    )

    operator.open("/tenants")
    page.get_by_role("button", name="New tenant").click()
    page.get_by_role("dialog").get_by_label("Name").fill("acme")
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="acme")).to_be_visible()
    page.get_by_role("button", name="New key").click()
    page.get_by_role("dialog").get_by_label("What it is for").fill("laptop")
    page.get_by_role("dialog").get_by_role("button", name="Make the key").click()
    key = page.locator("[data-new-key]").inner_text()
    models = f"{server.http_url}/v1/models"
    assert server.client.get(models, headers={"authorization": f"Bearer {key}"}).status_code == 200
    page.get_by_role("button", name="I have it").click()
    assert key not in page.content()
    page.get_by_role("button", name=re.compile("^Revoke")).click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("cell", name="revoked")).to_be_visible()
    until(
        lambda: server.client.get(models, headers={"authorization": f"Bearer {key}"}).status_code == 401,
        "the key is refused",
    )
    operator.close()
    assert operator.faults == []


def test_stop_cancels_what_runs_on_the_server(operator: UiPage, served: tuple[RunningServer, str]) -> None:
    page = operator.page
    operator.open("/playground?a=one")
    page.get_by_label("Most tokens").fill("400")
    page.get_by_role("textbox", name="Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant .text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    until(lambda: num_active(served[0]) == 0, "nothing runs", AT_ONCE_S)
    assert operator.faults == []


def num_active(server: RunningServer) -> int:
    return sum(
        replica["num_active"] for each in server.status()["deployments"] for replica in each["replicas"]
    )


def test_what_is_no_longer_seen_is_cancelled_too(operator: UiPage, served: tuple[RunningServer, str]) -> None:
    page = operator.page
    operator.open("/playground?a=one&b=two")
    page.get_by_label("Most tokens").fill("4")
    message = page.get_by_role("textbox", name="Message", exact=True)
    message.fill("Hello")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Most tokens").fill("400")
    message.fill("Hello")
    message.press("Enter")
    expect(page.locator(".turn.assistant .text")).to_have_count(2)
    page.get_by_label("Two side by side").uncheck()
    until(lambda: num_active(served[0]) == 1, "one of two runs", AT_ONCE_S)
    page.get_by_role("link", name="Memory map").first.click()
    until(lambda: num_active(served[0]) == 0, "nothing runs", AT_ONCE_S)
    assert operator.faults == []


def test_an_address_that_cannot_be_read_is_a_page_that_is_not_there(
    operator: UiPage, served: tuple[RunningServer, str]
) -> None:
    operator.page.goto(f"{served[1]}/%E0%A4%A")
    expect(operator.page.get_by_text("There is no such page")).to_be_visible()
    assert operator.faults == []


def test_the_memory_map_shows_what_the_admin_api_says_at_its_sequence_number(
    operator: UiPage, served: tuple[RunningServer, str]
) -> None:
    operator.open("/memory")
    shown = operator.page.evaluate(
        """() => ({
            seq: document.querySelector('[data-seq]').dataset.seq,
            rows: [...document.querySelectorAll('[data-device] tr[data-segment]')].map((row) => [
                row.closest('[data-device]').dataset.device, row.dataset.segment,
                Number(row.dataset.promisedBytes),
                row.dataset.usedBytes === '' ? null : Number(row.dataset.usedBytes)]),
        })"""
    )
    devices = served[0].admin("GET", f"/devices?seq={shown['seq']}").json()
    told = [
        [device["name"], name, each["promised_bytes"], each.get("used_bytes")]
        for device in devices
        for name, each in device["segments"].items()
    ]
    assert sorted(shown["rows"]) == sorted(told)
    for device in devices:
        assert sum(each[2] for each in told if each[0] == device["name"]) == device["budget_bytes"]


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ("wide", "light"),
        ("narrow", "dark"),
        pytest.param("wide", "dark", marks=pytest.mark.slow),
        pytest.param("narrow", "light", marks=pytest.mark.slow),
    ],
)
def test_every_page_can_be_read_by_all_and_fits_its_window(
    browser: Browser, served: tuple[RunningServer, str], size: str, scheme: str
) -> None:
    ui = UiPage(browser, served[1], size=size, scheme=scheme)
    ui.page.goto(served[1])
    ui.page.get_by_label("Admin key").wait_for()
    wrong = {"/login": ui.violations()}
    ui.log_in(served[0].admin_key)
    for path in PAGES:
        ui.open(path)
        wrong[path] = [*ui.violations(), *([f"too wide by {ui.overflow}"] if ui.overflow > 0 else [])]
    ui.close()
    assert {path: found for path, found in wrong.items() if found} == {}
    assert ui.faults == []


def test_the_keyboard_alone_goes_everywhere(operator: UiPage) -> None:
    page = operator.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus is seen"
        names.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Overview", "Memory map", "Residency", "Playground"} <= {
        re.sub(r"\d+$", "", name) for name in names
    }
    page.get_by_role("link", name="Deployments").first.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="New deployment").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="New deployment")).to_be_focused()


def test_a_wrong_key_is_told_and_a_log_out_forgets(
    browser: Browser, served: tuple[RunningServer, str]
) -> None:
    ui = UiPage(browser, served[1])
    ui.page.goto(served[1] + "/memory")
    ui.page.get_by_label("Admin key").fill("wrong")
    ui.page.get_by_role("button", name="Log in").click()
    expect(ui.page.get_by_text("That is not the admin key of this server.")).to_be_visible()
    ui.page.get_by_label("Admin key").fill(served[0].admin_key)
    ui.page.get_by_role("button", name="Log in").click()
    expect(ui.page.get_by_role("heading", name="Memory map")).to_be_visible()
    ui.page.get_by_role("button", name="Log out").click()
    expect(ui.page.get_by_label("Admin key")).to_be_visible()
    ui.page.reload()
    expect(ui.page.get_by_label("Admin key")).to_be_visible()
    ui.close()
