"""The UI's routes: who is let in, what is passed on, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from support.fake_admin_api import ADMIN_KEY, FakeAdminApi

from admin_ui.app import AdminUi
from admin_ui.config import UiConfig
from admin_ui.serving import serve
from admin_ui.upstream import server_client
from mooring.errors import ConfigurationError

BASE = "http://127.0.0.1:8080"
OWN = {"origin": BASE}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def running_api() -> Iterator[FakeAdminApi]:
    with FakeAdminApi(answers={"status": {"devices": []}}).running() as running:
        yield running


@pytest.fixture
def api(running_api: FakeAdminApi) -> FakeAdminApi:
    running_api.admin_key = ADMIN_KEY
    running_api.wants_keys, running_api.answer_s, running_api.num_tokens = False, 0.0, 2
    running_api.calls.clear()
    running_api.headers.clear()
    return running_api


@pytest.fixture
def clock() -> Clock:
    return Clock()


def browser_of(ui: AdminUi, base: str = BASE) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(ui.app), base_url=base)


@pytest.fixture
async def ui(api: FakeAdminApi, clock: Clock) -> AsyncIterator[AdminUi]:
    config = UiConfig(server=api.url)
    client = server_client(config)
    yield AdminUi.make(config, client, clock)
    await client.aclose()


@pytest.fixture
async def browser(ui: AdminUi) -> AsyncIterator[httpx.AsyncClient]:
    async with browser_of(ui) as client:
        yield client


async def log_in(browser: httpx.AsyncClient) -> str:
    """Logs in; the token for writes."""
    answer = await browser.post("/login", json={"key": ADMIN_KEY}, headers=OWN)
    answer.raise_for_status()
    token: str = answer.json()["token"]
    return token


async def test_the_right_key_gives_a_cookie_that_no_script_reads(browser: httpx.AsyncClient) -> None:
    answer = await browser.post("/login", json={"key": ADMIN_KEY}, headers=OWN)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert ADMIN_KEY not in answer.text + cookie
    assert (await browser.get("/session")).json()["token"] == answer.json()["token"]
    assert (await browser.get("/api/status")).json() == {"devices": []}


async def test_under_tls_the_cookie_is_for_tls_alone(api: FakeAdminApi) -> None:
    config = UiConfig(server=api.url, behind_proxy=True, allowed_hosts=("ui.example",))
    base = "https://ui.example"
    async with server_client(config) as client, browser_of(AdminUi.make(config, client), base) as browser:
        answer = await browser.post("/login", json={"key": ADMIN_KEY}, headers={"origin": base})
        assert answer.status_code == 200
        assert answer.headers["set-cookie"].startswith("__Host-")
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "max-age" in answer.headers["strict-transport-security"]
        refused = await browser.post(
            "/login", json={"key": ADMIN_KEY}, headers={"origin": "http://ui.example"}
        )
        assert refused.status_code == 403


@pytest.mark.parametrize("key", ["wrong", "", "schlüssel", "a\nb"])
async def test_a_wrong_key_gives_none(browser: httpx.AsyncClient, key: str) -> None:
    answer = await browser.post("/login", json={"key": key}, headers=OWN)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert (await browser.get("/session")).json() == {"token": None}


async def test_wrong_keys_are_limited_and_the_right_one_waits_too(
    browser: httpx.AsyncClient, clock: Clock
) -> None:
    for _ in range(8):
        assert (await browser.post("/login", json={"key": "no"}, headers=OWN)).status_code == 401
    refused = await browser.post("/login", json={"key": ADMIN_KEY}, headers=OWN)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) <= 60
    clock.now_s += 61
    await log_in(browser)


async def test_wrong_keys_that_come_at_once_are_limited_too(browser: httpx.AsyncClient) -> None:
    async def attempt() -> int:
        return (await browser.post("/login", json={"key": "no"}, headers=OWN)).status_code

    found = await asyncio.gather(*(attempt() for _ in range(30)))
    assert (found.count(401), found.count(429)) == (8, 22)


async def test_behind_a_proxy_the_limit_is_by_the_address_that_the_proxy_tells(api: FakeAdminApi) -> None:
    config = UiConfig(server=api.url, behind_proxy=True, allowed_hosts=("ui.example",))
    base = "https://ui.example"
    async with server_client(config) as client, browser_of(AdminUi.make(config, client), base) as browser:

        async def attempt(claimed: str, address: str) -> int:
            headers = {"origin": base, "x-forwarded-for": f"{claimed}, {address}"}
            return (await browser.post("/login", json={"key": "no"}, headers=headers)).status_code

        assert [await attempt(f"1.1.1.{number}", "9.9.9.9") for number in range(9)] == [401] * 8 + [429]
        assert await attempt("1.1.1.1", "8.8.8.8") == 401


async def test_a_server_that_is_away_is_no_wrong_key() -> None:
    config = UiConfig(server="http://127.0.0.1:9")
    async with server_client(config) as client, browser_of(AdminUi.make(config, client)) as browser:
        answer = await browser.post("/login", json={"key": ADMIN_KEY}, headers=OWN)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "server_unreachable"


# Who may not, by what is wrong with the request.
NO_LOGIN, WRONG_ORIGIN, NO_ORIGIN, WRONG_HOST, NO_TOKEN, WRONG_TOKEN, EXPIRED = (
    "no log-in", "wrong origin", "no origin", "wrong host", "no token", "wrong token", "expired",
)  # fmt: skip
REFUSED = {
    NO_LOGIN: 401, WRONG_ORIGIN: 403, NO_ORIGIN: 403, WRONG_HOST: 421, NO_TOKEN: 403, WRONG_TOKEN: 403, EXPIRED: 401,
}  # fmt: skip
WRITES = [("POST", "/api/deployments/m/wake"), ("PATCH", "/api/deployments/m"), ("DELETE", "/api/tenants/t")]


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize(("method", "path"), [*WRITES, ("POST", "/logout")])
async def test_a_write_that_lacks_something_is_refused_and_not_passed_on(
    browser: httpx.AsyncClient, api: FakeAdminApi, clock: Clock, method: str, path: str, fault: str
) -> None:
    token = await log_in(browser)
    api.calls.clear()
    headers = {**OWN, "x-mooring-token": token}
    if fault == NO_LOGIN:
        browser.cookies.clear()
    elif fault == WRONG_ORIGIN:
        headers["origin"] = "http://evil.example"
    elif fault == NO_ORIGIN:
        del headers["origin"]
    elif fault == WRONG_HOST:
        headers |= {"host": "evil.example:8080", "origin": "http://evil.example:8080"}
    elif fault == NO_TOKEN:
        del headers["x-mooring-token"]
    elif fault == WRONG_TOKEN:
        headers["x-mooring-token"] = "x"
    elif fault == EXPIRED:
        clock.now_s += 3600
    answer = await browser.request(method, path, headers=headers)
    assert answer.status_code == REFUSED[fault]
    assert api.calls == []


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_a_write_that_lacks_nothing_is_passed_on_with_the_admin_key(
    browser: httpx.AsyncClient, api: FakeAdminApi, method: str, path: str
) -> None:
    token = await log_in(browser)
    api.headers.clear()
    answer = await browser.request(method, path, headers={**OWN, "x-mooring-token": token})
    assert answer.status_code == 200
    assert api.calls[-1][:2] == (method, path.replace("/api/", "/admin/v1/"))
    assert api.headers[-1]["authorization"] == f"Bearer {ADMIN_KEY}"
    assert "cookie" not in api.headers[-1]
    assert "x-mooring-token" not in api.headers[-1]


async def test_reads_need_a_log_in_and_a_page_of_ours(browser: httpx.AsyncClient, clock: Clock) -> None:
    assert (await browser.get("/api/status")).status_code == 401
    await log_in(browser)
    assert (await browser.get("/api/status")).status_code == 200
    for headers, status in (
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": ""}, 421),
    ):
        assert (await browser.get("/api/status", headers=headers)).status_code == status
    clock.now_s += 3600
    assert (await browser.get("/api/status")).status_code == 401


async def test_changes_keep_a_session_and_what_an_open_page_asks_for_does_not(
    browser: httpx.AsyncClient, clock: Clock
) -> None:
    token = await log_in(browser)
    clock.now_s += 3000
    answer = await browser.post("/api/deployments/m/wake", headers={**OWN, "x-mooring-token": token})
    assert answer.status_code == 200
    for _ in range(3):
        clock.now_s += 1100
        assert (await browser.get("/api/status")).status_code == 200
    clock.now_s += 300
    assert (await browser.get("/api/status")).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/openapi.json"),
        ("GET", "/api/events/stream"),
        ("GET", "/api/live"),
        ("POST", "/api/status"),
        ("DELETE", "/api/deployments"),
        ("GET", "/api/deployments/a/../../../../v1/models"),
        ("GET", "/api/deployments/%2e%2e/tenants"),
        ("GET", "/api/deployments//x"),
        ("GET", "/api/deployments/a%0aX-Header:1"),
        ("GET", "/api/deployments/a%3Fb"),
        ("POST", "/api/tenants/a/b/keys"),
        ("GET", "/api/tenants?" + "a" * 3000),
    ],
)
async def test_no_other_calls_are_passed_on(
    browser: httpx.AsyncClient, api: FakeAdminApi, method: str, path: str
) -> None:
    token = await log_in(browser)
    api.calls.clear()
    answer = await browser.request(method, path, headers={**OWN, "x-mooring-token": token})
    assert answer.status_code == 404
    assert api.calls == []


async def test_a_body_that_no_page_sends_is_refused(browser: httpx.AsyncClient, api: FakeAdminApi) -> None:
    token = await log_in(browser)
    api.calls.clear()
    headers = {**OWN, "x-mooring-token": token}
    answer = await browser.post("/api/models", content=b" " * (4 << 20) + b"{}", headers=headers)
    assert answer.status_code == 413
    assert api.calls == []


async def test_cursors_of_a_list_come_back_and_its_query_goes_on(
    browser: httpx.AsyncClient, api: FakeAdminApi
) -> None:
    await log_in(browser)
    answer = await browser.get("/api/tenants?limit=5&search=a")
    assert answer.headers["x-mooring-next"] == "cursor"
    assert answer.headers["cache-control"] == "no-store"


async def test_a_key_that_was_changed_on_the_server_ends_the_session(
    browser: httpx.AsyncClient, api: FakeAdminApi
) -> None:
    await log_in(browser)
    api.admin_key = "another"
    assert (await browser.get("/api/status")).status_code == 401
    assert (await browser.get("/session")).json() == {"token": None}


async def test_logging_out_ends_the_session(browser: httpx.AsyncClient) -> None:
    token = await log_in(browser)
    kept = dict(browser.cookies)
    answer = await browser.post("/logout", headers={**OWN, "x-mooring-token": token})
    assert answer.status_code == 204
    browser.cookies.update(kept)
    assert (await browser.get("/api/status")).status_code == 401


async def test_a_one_time_link_logs_in_once(ui: AdminUi, browser: httpx.AsyncClient) -> None:
    secret = ui.links.make(ADMIN_KEY)
    assert (await browser.post("/login", json={"link": secret}, headers=OWN)).status_code == 200
    assert (await browser.get("/api/status")).status_code == 200
    assert (await browser.post("/login", json={"link": secret}, headers=OWN)).status_code == 401


async def test_a_link_for_a_key_of_before_says_so(
    ui: AdminUi, browser: httpx.AsyncClient, api: FakeAdminApi
) -> None:
    secret = ui.links.make(ADMIN_KEY)
    api.admin_key = "another"
    assert (await browser.post("/login", json={"link": secret}, headers=OWN)).status_code == 401


async def test_a_link_logs_in_before_its_server_is_there() -> None:
    config = UiConfig(server="http://127.0.0.1:9")
    async with server_client(config) as client:
        ui = AdminUi.make(config, client)
        async with browser_of(ui) as browser:
            given = {"link": ui.links.make(ADMIN_KEY)}
            assert (await browser.post("/login", json=given, headers=OWN)).status_code == 200


async def test_links_are_made_over_the_unix_socket_alone(browser: httpx.AsyncClient) -> None:
    answer = await browser.post("/links", json={"key": ADMIN_KEY}, headers=OWN)
    assert answer.status_code == 404


async def test_every_answer_has_the_headers_that_keep_a_page_apart(browser: httpx.AsyncClient) -> None:
    version = (await browser.get("/")).text.split("/static/")[1][:12]
    for path in ("/", "/session", "/api/status", "/nothing/here", f"/static/{version}/app.css"):
        answer = await browser.get(path)
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_page_is_told_of_the_session_of_its_own_browser_alone(
    browser: httpx.AsyncClient, clock: Clock
) -> None:
    token = await log_in(browser)
    assert token in (await browser.get("/memory")).text
    foreign = await browser.get("/", headers={"origin": "http://evil.example"})
    assert token not in foreign.text
    kept = dict(browser.cookies)
    browser.cookies.clear()
    assert 'data-session=""' in (await browser.get("/")).text
    browser.cookies.update(kept)
    clock.now_s += 3600
    assert 'data-session=""' in (await browser.get("/")).text


async def test_files_are_kept_for_ever_under_their_version_and_no_other(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/deployments/any/name")).text
    assert "{{" not in page
    assert "<script>" not in page
    version = page.split("/static/")[1][:12]
    answer = await browser.get(f"/static/{version}/js/main.js", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    for path in (f"/static/{version}/../app.py", f"/static/{version}/index.html", "/static/x/app.css"):
        assert (await browser.get(path)).status_code == 404


async def test_a_visitors_page_passes_on_the_visitors_key_and_no_admin_call(api: FakeAdminApi) -> None:
    config = UiConfig(server=api.url, playground=True)
    async with server_client(config) as client, browser_of(AdminUi.make(config, client)) as browser:
        api.headers.clear()
        await browser.get("/v1/models", headers={"authorization": "Bearer mine"})
        assert api.headers[-1]["authorization"] == "Bearer mine"
        await browser.get("/v1/models")
        assert "authorization" not in api.headers[-1]
        api.calls.clear()
        for method, path in (
            ("POST", "/login"), ("GET", "/api/status"), ("GET", "/v1/%2e%2e/admin/v1/status"), ("POST", "/v1/stream"),
        ):  # fmt: skip
            answer = await browser.request(method, path, headers=OWN)
            assert answer.status_code in (404, 405)
        assert api.calls == []
        assert 'data-page="playground"' in (await browser.get("/")).text


async def test_a_visitors_program_needs_a_key_and_no_origin(api: FakeAdminApi) -> None:
    config = UiConfig(server=api.url, playground=True)
    async with server_client(config) as client, browser_of(AdminUi.make(config, client)) as program:
        key = {"authorization": "Bearer mine"}
        for headers, status in (
            (key, 200),
            ({}, 403),
            ({**key, "origin": "http://evil.example"}, 403),
            ({**key, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ):
            assert (await program.post("/v1/completions", json={}, headers=headers)).status_code == status


async def test_visitors_from_elsewhere_are_not_let_to_a_server_that_wants_no_keys(api: FakeAdminApi) -> None:
    config = UiConfig(server=api.url, playground=True, behind_proxy=True, allowed_hosts=("ui.example",))
    clock, base = Clock(), "https://ui.example"
    async with (
        server_client(config) as client,
        browser_of(AdminUi.make(config, client, clock), base) as browser,
    ):
        headers = {"authorization": "Bearer made-up", "origin": base}
        refused = await browser.post("/v1/completions", json={}, headers=headers)
        assert refused.status_code == 403
        assert "--require-keys" in refused.json()["error"]["message"]
        assert {path for _, path, _ in api.calls} == {"/v1/models"}
        api.wants_keys = True
        assert (await browser.post("/v1/completions", json={}, headers=headers)).status_code == 200
        api.wants_keys = False
        clock.now_s += 11
        assert (await browser.post("/v1/completions", json={}, headers=headers)).status_code == 403


async def test_a_call_that_its_browser_leaves_gives_its_connection_back(api: FakeAdminApi) -> None:
    config = UiConfig(server=api.url)
    limits = httpx.Limits(max_connections=2)
    async with httpx.AsyncClient(base_url=api.url, limits=limits, timeout=10, trust_env=False) as client:
        ui = AdminUi.make(config, client)
        async with browser_of(ui) as browser:
            await log_in(browser)
            cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
            for patience_s in (0.0, 0.05, 0.3, 0.6):
                await leave(ui, "/api/status", cookie, patience_s, api)
            api.answer_s = 0.0
            assert (await browser.get("/api/status")).status_code == 200


async def leave(ui: AdminUi, path: str, cookie: str, patience_s: float, api: FakeAdminApi) -> None:
    """A browser that asks a server which takes half a second, and goes away before it has the whole answer."""
    api.answer_s = 0.5
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
        "scheme": "http", "root_path": "", "http_version": "1.1",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080),
        "headers": [(b"host", b"127.0.0.1:8080"), (b"cookie", cookie.encode())], "asgi": {"version": "3.0"},
    }  # fmt: skip
    loop = asyncio.get_running_loop()
    leaves_at_s, asked = loop.time() + patience_s, False

    async def receive() -> dict[str, object]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if (left_s := leaves_at_s - loop.time()) > 0:  # as a real server: who has gone is told of at once
            await asyncio.sleep(left_s)
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        await asyncio.sleep(0)

    await ui.app(scope, receive, send)


def test_a_certificate_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "cert.pem"
    wrong.write_text("nonsense")
    config = UiConfig("http://127.0.0.1:8000", port=0, tls_certificate=str(wrong), tls_key=str(wrong))
    with pytest.raises(ConfigurationError, match=r"cert\.pem"):
        asyncio.run(serve(config))


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"host": "0.0.0.0", "behind_proxy": True},
        {"tls_certificate": "cert.pem"},
    ],
)
def test_what_would_be_open_to_others_unprotected_does_not_start(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        UiConfig(server="http://127.0.0.1:8000", **wrong)  # type: ignore[arg-type]
