"""Comments of a stream that waits for its first token: from a scripted engine, and from a model that really comes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.http_door import HttpDoor, open_door
from support.router_doors import (
    ScriptedStream,
    byte_level_tokenizer,
    one_token_a_step,
    served_model,
    write_model_folder,
)
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

from mooring.errors import OverloadedError
from router.doors.openai.progress import progress
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

TOKENIZER = byte_level_tokenizer()
ANSWER_IDS = TOKENIZER.encode("hello").ids
ASKED = {"x-mooring-progress": "true"}
COMMENT = {"state": "waiting", "model": "org/tiny", "residency": "waking", "reason": "a request came"}


def answer(request: GenerationRequest) -> ScriptedStream:
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps: list[Any] = one_token_a_step(request, ANSWER_IDS)
    if "full" in text:
        steps = [OverloadedError("The queue is full.")]
    pause_s = 30 if "hang" in text else 0.6 if "late" in text else 0.0
    return ScriptedStream(steps, pause_s=pause_s)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[HttpDoor]:
    async with open_door(write_model_folder(tmp_path, TOKENIZER), answer) as opened:
        yield opened


def body(prompt: str) -> dict[str, Any]:
    return {"model": "org/tiny", "prompt": prompt, "max_tokens": 2, "stream": True}


async def lines_of(door: HttpDoor, prompt: str, **headers: str) -> tuple[int, list[str]]:
    """The status, and the lines of the answer that are not empty."""
    async with httpx.AsyncClient(timeout=20) as http:
        answered = await http.post(f"{door.url}/v1/completions", json=body(prompt), headers=headers)
    return answered.status_code, [line for line in answered.text.splitlines() if line]


def comments_of(lines: list[str]) -> list[Any]:
    return [json.loads(line.removeprefix(": ")) for line in lines if line.startswith(":")]


async def test_a_stream_says_where_its_model_is_until_the_first_token(door: HttpDoor) -> None:
    status, lines = await lines_of(door, "late", **ASKED)
    assert status == 200
    assert comments_of(lines[:1]) == [COMMENT]
    rest = [line for line in lines if not line.startswith(":")]
    assert lines[-len(rest) :] == rest, "no comment after the first event"
    assert rest[-1] == "data: [DONE]"
    assert (await lines_of(door, "late"))[1][0].startswith("data: "), "nobody asked"
    await door.closed()


async def test_openais_client_skips_the_comments(door: HttpDoor) -> None:
    texts = []
    for headers in ({}, ASKED):
        stream = await door.client().completions.create(
            model="org/tiny", prompt="late", max_tokens=2, stream=True, extra_headers=headers
        )
        texts.append("".join([chunk.choices[0].text async for chunk in stream]))
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("prompt", ["hi", "full"])
async def test_what_ends_at_once_is_as_it_is_without(door: HttpDoor, prompt: str) -> None:
    status, lines = await lines_of(door, prompt, **ASKED)
    assert status == (200 if prompt == "hi" else 503)
    assert comments_of(lines) == []


async def test_an_error_after_the_beginning_is_the_last_event(door: HttpDoor) -> None:
    status, lines = await lines_of(door, "late full", **ASKED)
    assert (status, comments_of(lines)[0]) == (200, COMMENT)
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "server_overloaded"
    assert (await lines_of(door, "late full"))[0] == 503
    await door.closed()


async def test_who_leaves_during_the_comments_frees_what_the_request_held(door: HttpDoor) -> None:
    async with (
        httpx.AsyncClient(timeout=20) as http,
        http.stream("POST", f"{door.url}/v1/completions", json=body("hang"), headers=ASKED) as answered,
    ):
        assert comments_of([await anext(answered.aiter_lines())]) == [COMMENT]
    await door.closed()
    await door.in_flight(0)


async def test_a_comment_comes_when_something_changes_and_once_a_second() -> None:
    places = [("cold", "nobody asked")]
    model = replace(served_model("m", Path()), whereabouts=lambda: places[-1])
    first = asyncio.get_running_loop().create_future()
    comments = progress(model, first)
    said = [await anext(comments)]
    places.append(("loading", "a request came"))
    said += [await anext(comments), await anext(comments)]
    assert [json.loads(each.decode().removeprefix(": "))["residency"] for each in said] == (
        ["cold", "loading", "loading"]
    )
    first.set_result(None)
    assert [each async for each in comments] == []


def test_a_comment_says_what_the_operator_sees(tmp_path: Path) -> None:
    models = {"first": write_checkpoint(tmp_path / "first")}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path / "data", models, flags, NULL_ENVIRONMENT) as server:
        (pid,) = server.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        go_on = threading.Timer(20, os.kill, (pid, signal.SIGCONT))  # should the test fail
        go_on.start()
        url, sent = f"{server.http_url}/v1/completions", {**body("hi"), "model": "first"}
        try:
            with server.client.stream("POST", url, json=sent, headers=ASKED) as answered:
                lines = answered.iter_lines()
                (comment,) = comments_of([next(lines)])
                why = server.admin("GET", "/deployments/first/why").json()
                os.kill(pid, signal.SIGCONT)
                rest = list(lines)
        finally:
            go_on.cancel()
            os.kill(pid, signal.SIGCONT)
    assert why["num_waiting"] == 1
    assert comment == {
        "state": "waiting",
        "model": "first",
        "residency": why["residency"],
        "reason": why["reason"] or "",
    }
    assert "data: [DONE]" in rest
