"""The dry run at a real server: sources, models and deployments, and what they then take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from support.gguf_files import Source, write_gguf
from support.registering import opened
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from model_registry.importing.examination import Outline
from model_registry.importing.importer import Importer
from mooring.errors import ArtifactError
from router.control.fitting import Fitting

pytestmark = pytest.mark.integration

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("fit")
    with RunningServer(
        root / "data",
        {"first": write_checkpoint(root / "first")},
        ["--engine", "null", "--memory-budget", "64MiB"],
        {**NULL_ENVIRONMENT, "HF_HUB_OFFLINE": "1"},
    ) as running:
        yield running


async def test_a_hub_that_does_not_answer_holds_up_no_other_work(tmp_path: Path) -> None:
    asking, answered = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(importer: Importer, source: str) -> Outline:
        loop.call_soon_threadsafe(asking.set)
        answered.wait(30)
        raise ArtifactError("the hub does not answer")

    loop.set_default_executor(ThreadPoolExecutor(1))
    async with opened(tmp_path) as house:
        fitting = Fitting(house.registrar)
        with patch.object(Importer, "outline", wait):
            question = fitting.fit(source="hf://a/b", model=None, deployment=None, policy={})
            task = asyncio.create_task(question)
            try:
                async with asyncio.timeout(10):
                    await asking.wait()
                    await asyncio.to_thread(int)
            finally:
                answered.set()
            with pytest.raises(ArtifactError):
                await task


def fit(server: RunningServer, **question: Any) -> dict[str, Any]:
    answer = server.admin("POST", "/fit", question)
    assert answer.status_code == 200, answer.text
    (device,) = answer.json()["devices"].items()
    assert device[0] == "cpu"
    found: dict[str, Any] = device[1]
    return found


def test_what_is_told_of_a_source_is_what_its_model_then_takes(server: RunningServer, tmp_path: Path) -> None:
    source = str(write_checkpoint(tmp_path / "m", 3))
    before = fit(server, source=source)
    assert before["verdict"] == "fits"
    assert before["leaving"] == []
    assert before["takes_s"] > 0
    assert server.admin("GET", "/models").json()[-1]["name"] == "first", "nothing is registered"
    server.admin("POST", "/models", {"name": "m", "source": source}).raise_for_status()
    until(lambda: server.admin("GET", "/registrations").json()[-1]["state"] == "done", "it is registered")
    for question in ({"model": "m"}, {"deployment": "m"}):
        after = fit(server, **question)
        for name in ("weights_bytes", "kv_guarantee_bytes", "kv_longest_bytes"):
            assert after[name] == before[name]
    server.admin("POST", "/deployments/m/wake").raise_for_status()
    there = fit(server, deployment="m")
    assert (there["verdict"], there["message"]) == ("fits", "it is on this device, or on its way")
    owners = server.admin("GET", "/devices").json()[0]["owners"]
    (lease,) = [num_bytes for owner, num_bytes in owners.items() if owner.startswith("weights:m/")]
    assert lease == before["weights_bytes"]


def test_the_policy_counts(server: RunningServer) -> None:
    assert (
        fit(server, deployment="first", policy={"kv_guarantee_bytes": 4 * MIB})["kv_guarantee_bytes"]
        == 4 * MIB
    )
    too_much = fit(server, model="first", policy={"kv_guarantee_bytes": 100 * MIB})
    assert too_much["verdict"] == "never"


def test_of_a_gguf_file_the_header_is_read(server: RunningServer, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", Source())
    assert fit(server, source=str(path))["weights_bytes"] > 0
    path.write_bytes(path.read_bytes()[:300])
    answer = server.admin("POST", "/fit", {"source": str(path)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_artifact")


@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        ({}, 400, "invalid_value"),
        ({"source": "/x", "model": "first"}, 400, "invalid_value"),
        ({"source": ""}, 400, "invalid_value"),
        ({"model": "first", "policy": {"pinnd": True}}, 400, "unsupported_parameter"),
        ({"model": "first", "policy": {"max_model_len": 0}}, 400, "invalid_value"),
        ({"model": "nothing"}, 404, "not_found"),
        ({"deployment": "nothing"}, 404, "not_found"),
        ({"source": "/nowhere/at/all"}, 422, "invalid_artifact"),
        ({"source": "hf://org/name"}, 422, "invalid_artifact"),
        ({"source": "hf://name"}, 400, "invalid_value"),
    ],
)
def test_what_cannot_be_asked_says_why(
    server: RunningServer, question: dict[str, Any], status: int, code: str
) -> None:
    answer = server.admin("POST", "/fit", question)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
