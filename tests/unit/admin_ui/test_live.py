"""The live feed: snapshot, patches, gaps, tabs that fall behind, and the WebSocket's door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from support.fake_admin_api import ADMIN_KEY, FakeAdminApi
from support.until import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from admin_ui.app import AdminUi
from admin_ui.config import UiConfig
from admin_ui.live import LiveFeed, Tab
from admin_ui.upstream import server_client
from mooring.merge_patch import patched

TIMEOUT_S = 20.0

JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def diff(before: Any, after: Any) -> Any:
    """A merge patch from one value without nulls to another."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        if name not in before or before[name] != value:
            patch[name] = diff(before.get(name), value)
    return patch


@given(JSON, JSON)
def test_a_patch_leads_from_one_state_to_the_other(before: Any, after: Any) -> None:
    copy = json.loads(json.dumps(before))
    assert patched(before, diff(before, after)) == after
    assert before == copy


async def test_a_tab_that_does_not_read_is_sent_one_snapshot_instead_of_all() -> None:
    tab = Tab("key")
    for number in range(1000):
        tab.put(str(number))
    assert tab.is_behind
    assert await tab.take() is None
    tab.start_over("snapshot")
    tab.put("patch")
    assert [await tab.take(), await tab.take()] == ["snapshot", "patch"]


async def test_a_tab_that_is_behind_while_nothing_is_known_waits_for_what_comes() -> None:
    async with httpx.AsyncClient() as client:
        live = LiveFeed(client, lambda key: None)
        tab = Tab("key")
        for number in range(1000):
            tab.put(str(number))
        live.resync(tab)
        waiting = asyncio.create_task(tab.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        tab.put("news")
        assert await waiting == "news"


@pytest.fixture
def api() -> Iterator[FakeAdminApi]:
    with FakeAdminApi({"figures": {"running": 1}}).running() as running:
        yield running


@asynccontextmanager
async def ui_of(
    api: FakeAdminApi, clock: Callable[[], float] | None = None
) -> AsyncIterator[tuple[str, AdminUi]]:
    """A UI that listens; its address without the scheme."""
    config = UiConfig(server=api.url)
    client = server_client(config)
    ui = AdminUi.make(config, client, clock) if clock is not None else AdminUi.make(config, client)
    server = uvicorn.Server(uvicorn.Config(ui.app, port=0, log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server.serve())
    await asyncio.to_thread(until, lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}", ui
    finally:
        await ui.live.close()
        server.should_exit = True
        await running
        await client.aclose()


async def logged_in(address: str) -> dict[str, str]:
    """Headers of a browser that is logged in."""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        own = {"origin": f"http://{address}"}
        answer = await client.post("/login", json={"key": ADMIN_KEY}, headers=own)
        cookie = answer.headers["set-cookie"].split(";")[0]
    return {"cookie": cookie}


async def told(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a kind."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            if message["type"] == kind:
                return message


def open_tab(address: str, headers: dict[str, str], **more: Any) -> connect:
    return connect(f"ws://{address}/live", additional_headers=headers, origin=f"http://{address}", **more)


async def test_all_tabs_share_one_reader_which_goes_with_the_last(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _):
        headers = await logged_in(address)
        async with open_tab(address, headers) as one, open_tab(address, headers) as other:
            for tab in (one, other):
                snapshot = await told(tab, "snapshot")
                assert snapshot["state"] == {"figures": {"running": 1}}
            api.publish({"figures": {"running": 2}})
            api.tell({"id": 7, "kind": "load"})
            for tab in (one, other):
                patch = await told(tab, "patch")
                assert patch == {
                    "type": "patch",
                    "seq": snapshot["seq"] + 1,
                    "patch": {"figures": {"running": 2}},
                }
                assert (await told(tab, "event"))["event"] == {"id": 7, "kind": "load"}
            assert api.num_readers == 1
            async with open_tab(address, headers) as late:
                assert (await told(late, "snapshot"))["state"] == {"figures": {"running": 2}}
        await asyncio.to_thread(until, lambda: api.num_readers == 0)


async def test_a_gap_and_a_broken_stream_end_in_a_new_snapshot(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _), open_tab(address, await logged_in(address)) as tab:
        await told(tab, "snapshot")
        api.publish({"figures": {"running": 9}}, skip=3)
        assert "skipped" in (await told(tab, "trouble"))["message"]
        await told(tab, "snapshot")
        api.end_streams()
        await told(tab, "trouble")
        await told(tab, "snapshot")


async def test_a_page_that_is_loaded_again_is_told_what_happens_at_once(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _):
        headers = await logged_in(address)
        async with open_tab(address, headers) as tab:
            await told(tab, "snapshot")
        api.publish({"figures": {"running": 2}})  # the reader sees that nobody is there
        await asyncio.sleep(0.5)
        async with open_tab(address, headers) as tab:
            assert (await told(tab, "snapshot"))["state"] == {"figures": {"running": 2}}
            began_s = asyncio.get_running_loop().time()
            api.publish({"figures": {"running": 3}})
            await told(tab, "patch")
            assert asyncio.get_running_loop().time() - began_s < 2.0
        assert api.num_asked == 1


async def test_a_server_that_refuses_is_asked_less_and_less_often(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _):
        api.live_status = 500
        async with open_tab(address, await logged_in(address)) as tab:
            began_s = asyncio.get_running_loop().time()
            for _ in range(4):
                assert "500" in (await told(tab, "trouble"))["message"]
            # The pauses between them: 0.25, 0.5 and 1 s.
            assert asyncio.get_running_loop().time() - began_s > 1.5
            api.live_status = 200
            await told(tab, "snapshot")


async def test_a_tab_may_ask_for_the_state(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _), open_tab(address, await logged_in(address)) as tab:
        first = await told(tab, "snapshot")
        await tab.send('{"type": "resync"}')
        assert await told(tab, "snapshot") == first
        await tab.send("nonsense")
        with pytest.raises(ConnectionClosed):
            await told(tab, "snapshot")


async def test_the_socket_is_for_pages_of_ours_that_are_logged_in(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _):
        headers = await logged_in(address)
        own = f"http://{address}"
        for host, given, origin, status in (
            (address, {}, own, 401),
            (address, headers, "http://evil.example", 403),
            (address, headers, None, 403),
            ("evil.example", headers, "http://evil.example", 421),
        ):
            with pytest.raises(InvalidStatus) as refused:
                await handshake(address, host, given, origin)
            assert refused.value.response.status_code == status
        assert api.num_readers == 0


async def handshake(address: str, host: str, headers: dict[str, str], origin: str | None) -> None:
    """A handshake under a name, which may be one that was let stand for this machine's address."""
    there, _, port = address.partition(":")
    await connect(
        f"ws://{host}/live",
        host=there,
        port=int(port),
        additional_headers=headers,
        origin=origin,  # type: ignore[arg-type]
    )


async def test_an_open_tab_does_not_keep_a_session_and_use_does(
    api: FakeAdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("admin_ui.tabs._LOOK_S", 0.05)
    async with ui_of(api, lambda: now_s) as (address, _), open_tab(address, await logged_in(address)) as tab:
        await told(tab, "snapshot")
        now_s += 3000
        await tab.send('{"type": "active"}')
        await tab.send('{"type": "resync"}')
        await told(tab, "snapshot")
        now_s += 3000
        await tab.send('{"type": "resync"}')
        await told(tab, "snapshot")
        now_s += 600
        with pytest.raises(ConnectionClosed) as closed:
            await told(tab, "snapshot")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


async def test_a_key_that_the_server_takes_no_longer_closes_the_tab(
    api: FakeAdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admin_ui.tabs._LOOK_S", 0.05)
    async with ui_of(api) as (address, _), open_tab(address, await logged_in(address)) as tab:
        await told(tab, "snapshot")
        api.admin_key = "another"
        api.end_streams()
        with pytest.raises(ConnectionClosed):
            await told(tab, "snapshot")


async def test_closing_a_playground_stream_cancels_it_upstream(api: FakeAdminApi) -> None:
    async with ui_of(api) as (address, _):
        headers = {**await logged_in(address), "origin": f"http://{address}"}
        async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers) as client:
            token = (await client.get("/session")).json()["token"]
            call = client.stream(
                "POST", "/api/playground/completions", json={}, headers={"x-mooring-token": token}
            )
            async with call as answer:
                lines = answer.aiter_lines()
                assert "0 " in await anext(lines)
        await asyncio.to_thread(until, lambda: api.num_cancelled == 1)
