"""The KServe v2 REST door on a real port, but for ``infer``: generate, paths, the repository, keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.kserve_doors import ADMIN_KEY
from support.kserve_rest_door import ANSWER, ANSWER_IDS, TOKENIZER, RestDoor, rest_door, text_input
from support.router_doors import KEY, authenticate, write_model_folder
from tritonclient.utils import InferenceServerException

# One server, and one event loop, for all tests: to start one takes longer than most of them.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/org/tiny/infer"
GENERATE = "/v2/models/org/tiny/generate"
STREAM = "/v2/models/org/tiny/generate_stream"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(folder: Path) -> AsyncIterator[RestDoor]:
    async with rest_door(folder) as started:
        yield started


@pytest.fixture
def server(shared_server: RestDoor) -> RestDoor:
    shared_server.forget()
    return shared_server


# Generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
async def test_generate(server: RestDoor, nested: bool) -> None:
    fields = {"max_tokens": 50, "temperature": 0, "stop_words": ["zzz"], "return_finish_reason": True}
    body = {"id": "42", "text_input": "hi", **({"parameters": fields} if nested else fields)}
    async with server.http() as http:
        for path in (GENERATE, "/v2/models/org/tiny/versions/1/generate"):
            result = await http.post(path, json=body)
            assert result.json() == {
                "id": "42",
                "model_name": "org/tiny",
                "model_version": "1",
                "text_output": "hi" + ANSWER,
                "finish_reason": "stop",
            }
        several = await http.post(GENERATE, json={"text_input": "hi", "max_tokens": 50, "n": 2})
    assert several.json()["text_output"] == ["hi" + ANSWER] * 2
    assert "id" not in several.json()
    assert {request.stop for request in server.source.requests} == {("zzz",), ()}


async def test_generate_stream(server: RestDoor) -> None:
    async with server.http() as http:
        body = {"text_input": "hi", "stream": True, "max_tokens": 50, "id": "7"}
        streamed = await http.post(STREAM, json=body)
        single = await http.post(STREAM, json={**body, "stream": False, "exclude_input_in_output": True})
        failing = await http.post(STREAM, json={**body, "text_input": "fail later"})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = events(streamed.text)
    assert len(chunks) == len(ANSWER_IDS)
    assert "".join(chunk["text_output"] for chunk in chunks) == ANSWER
    assert {(chunk["id"], chunk["model_name"], chunk["model_version"]) for chunk in chunks} == {
        ("7", "org/tiny", "1")
    }
    assert [event["text_output"] for event in events(single.text)] == [ANSWER]
    *before, last = events(failing.text)
    assert len(before) == 3
    assert last == {"error": "The worker died twice under it."}


def events(text: str) -> list[dict[str, Any]]:
    *whole, rest = text.split("\n\n")
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in whole]


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "text_input"),
        ([], 400, "object"),
        ({"text_input": "hi", "whatever": 1}, 400, "'whatever'"),
        ({"text_input": "hi", "max_tokens": 1, "parameters": {"max_tokens": 1}}, 400, "twice"),
        ({"text_input": "hi", "parameters": 7}, 400, "'parameters'"),
        ({"text_input": 7}, 400, "'text_input'"),
        ({"text_input": "\ud800"}, 400, "surrogate"),
        ({"text_input": "hi", "temperature": 9}, 400, "temperature"),
        ({"text_input": "fail at once", "stream": True}, 503, "queue"),
        ({"text_input": "bug", "stream": True}, 500, "logged"),
    ],
)
async def test_errors_of_generate(server: RestDoor, path: str, body: Any, status: int, named: str) -> None:
    async with server.http() as http:
        result = await http.post(path, content=json.dumps(body))
    assert result.headers["content-type"] == "application/json"
    assert (result.status_code, named in result.json()["error"]) == (status, True), result.text
    for stream in server.source.streams:
        assert stream.closed.is_set()


@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_a_client_that_goes_away_frees_what_it_held(server: RestDoor, path: str) -> None:
    async with server.http() as http:
        request = asyncio.create_task(http.post(path, json={"text_input": "hang", "stream": True}))
        await server.source.started(1)
        request.cancel()
        await asyncio.wait([request])
    await asyncio.wait_for(server.source.streams[-1].closed.wait(), 20)


# The rest ---------------------------------------------------------------------------------------------


async def test_paths_methods_models_and_versions(server: RestDoor) -> None:
    model = "/v2/models/org/tiny"
    expected = {
        ("GET", "/v2"): 200,
        ("GET", "/v2/health/live"): 200,
        ("GET", "/v2/health/ready"): 200,
        ("GET", model): 200,
        ("GET", f"{model}/versions/1"): 200,
        ("GET", f"{model}/versions/1/ready"): 200,
        ("GET", f"{model}/versions/2/ready"): 400,
        ("GET", f"{model}/versions/2"): 404,
        ("GET", f"{model}/versions/x"): 400,
        ("GET", f"{model}/config"): 200,
        ("GET", f"{model}/stats"): 200,
        ("GET", "/v2/models/stats"): 200,
        ("GET", "/v2/models/nope"): 404,
        ("GET", "/v2/models/nope/ready"): 400,
        ("POST", "/v2/models/nope/infer"): 404,
        ("POST", "/v2/models/nope/generate_stream"): 404,
        ("GET", f"{model}/infer"): 405,
        ("POST", f"{model}/versions/1/config"): 405,
        ("POST", "/v2"): 405,
        ("GET", "/v2/nope"): 404,
        ("GET", "/v2/repository/index"): 405,
        ("POST", "/v2/repository/elsewhere/index"): 400,
        ("GET", "/v2/trace/setting"): 503,
        ("GET", f"{model}/trace/setting"): 503,
        ("POST", "/v2/logging"): 503,
        ("GET", "/v2/systemsharedmemory/status"): 200,
        ("GET", "/v2/systemsharedmemory/region/r/status"): 404,
        ("POST", "/v2/cudasharedmemory/region/r/register"): 501,
        ("POST", "/v2/systemsharedmemory/unregister"): 501,
    }
    async with server.http() as http:
        for (method, path), status in expected.items():
            result = await http.request(method, path)
            assert result.status_code == status, (method, path, result.text)
            if status >= 400 and not path.endswith("/ready"):
                assert set(result.json()) == {"error"}
        assert (await http.get(f"{model}/infer")).headers["allow"] == "POST"


async def test_the_repository_needs_the_admin_key(server: RestDoor) -> None:
    load, unload = "/v2/repository/models/org/tiny/load", "/v2/repository/models/org/tiny/unload"
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    async with server.http() as http:
        assert (await http.post(load)).status_code == 401
        assert server.repository.calls == []
        assert (await http.post(load, headers=key)).status_code == 200
        body = {"parameters": {"unload_dependents": False}}
        assert (await http.post(unload, headers=key, json=body)).status_code == 200
        for refused in ({"parameters": {"config": "{}"}}, {"whatever": 1}, {"parameters": [1]}):
            assert (await http.post(load, headers=key, json=refused)).status_code == 400
        assert (await http.post(load.replace("org/tiny", "nope"), headers=key)).status_code == 404
        everything = (await http.post("/v2/repository/index")).json()
        ready = (await http.post("/v2/repository/index", json={"ready": True})).json()
        assert (await http.post("/v2/repository/index", json={"ready": 1})).status_code == 400
    assert server.repository.calls == [("load", "org/tiny"), ("unload", "org/tiny")]
    assert [entry["name"] for entry in everything] == ["org/tiny", "off"]
    assert ready == [{"name": "org/tiny", "version": "1", "state": "READY", "reason": ""}]


async def test_keys(folder: Path) -> None:
    async with rest_door(folder, authenticate=authenticate, allow_anonymous=False) as server:
        async with server.http() as http:
            assert (await http.get("/v2/health/ready")).status_code == 200
            refused = await http.post(INFER, content=b"nonsense")
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
            assert refused.headers["www-authenticate"] == "Bearer"
        async with server.triton() as client:
            with pytest.raises(InferenceServerException, match="API key"):
                await client.get_server_metadata()
            headers = {"authorization": f"Bearer {KEY}"}
            await client.infer("org/tiny", [text_input()], headers=headers)
    assert server.source.requests[0].tenant == "acme"
