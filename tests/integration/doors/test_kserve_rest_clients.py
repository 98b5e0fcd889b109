"""Every method of Triton's HTTP clients, sync and aio, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.triton_calls import ClientCalls, aio_call, methods, sync_call
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.integration

NULL = ["--engine", "null", "--memory-budget", "64MiB"]
SHM_TEXT = "shared memory is not supported"
CUDA_HANDLE = b"aGFuZGxl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("kserve_rest")
    models = {name: write_checkpoint(root / name, seed) for seed, name in enumerate(("org/a", "b"))}
    with RunningServer(root / "data", models, NULL, NULL_ENVIRONMENT) as running:
        yield running


def text_inputs(text: str, max_tokens: int) -> list[Any]:
    prompt = triton.InferInput("text_input", [1, 1], "BYTES")
    prompt.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    limit = triton.InferInput("max_tokens", [1, 1], "INT32")
    limit.set_data_from_numpy(np.array([[max_tokens]], dtype=np.int32))
    return [prompt, limit]


class Calls(ClientCalls):
    """What the sync and the aio client have alike."""

    def refused(self, status: int, words: str, *call: Any, **arguments: Any) -> None:
        with pytest.raises(InferenceServerException) as caught:
            self.call(*call, **arguments)
        assert caught.value.status() == str(status)
        assert words in caught.value.message()

    def is_server_live(self) -> None:
        assert self.call("is_server_live")

    def is_server_ready(self) -> None:
        assert self.call("is_server_ready")

    def is_model_ready(self) -> None:
        assert self.call("is_model_ready", "org/a")
        assert self.call("is_model_ready", "org/a", "1")
        assert not self.call("is_model_ready", "org/a", "2")
        assert not self.call("is_model_ready", "nobody")

    def get_server_metadata(self) -> None:
        metadata = self.call("get_server_metadata")
        assert metadata["name"] == "mooring"
        assert {"binary_tensor_data", "generate", "statistics"} <= set(metadata["extensions"])

    def get_model_metadata(self) -> None:
        metadata = self.call("get_model_metadata", "org/a")
        assert (metadata["name"], metadata["versions"]) == ("org/a", ["1"])
        inputs = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["inputs"]}
        assert inputs["text_input"] == ("BYTES", [1])
        assert inputs["stop_words"] == ("BYTES", [-1])
        assert {"name": "text_output", "datatype": "BYTES", "shape": [-1]} in metadata["outputs"]
        self.refused(404, "nobody", "get_model_metadata", "nobody")
        self.refused(404, "version 3", "get_model_metadata", "org/a", "3")

    def get_model_config(self) -> None:
        config = self.call("get_model_config", "org/a", "1")
        assert (config["name"], config["backend"], config["max_batch_size"]) == ("org/a", "null", 0)
        assert config["model_transaction_policy"] == {"decoupled": True}
        assert [each["name"] for each in config["input"] if not each["optional"]] == ["text_input"]

    def get_model_repository_index(self) -> None:
        index = self.call("get_model_repository_index")
        assert [(each["name"], each["version"], each["state"]) for each in index] == [
            ("b", "1", "READY"),
            ("org/a", "1", "READY"),
        ]

    def load_model(self) -> None:
        self.refused(401, "admin key", "load_model", "org/a")
        self.refused(404, "nobody", "load_model", "nobody", headers=self.admin)
        self.refused(400, "'config'", "load_model", "org/a", headers=self.admin, config="{}")
        self.call("load_model", "org/a", headers=self.admin)

    def unload_model(self) -> None:
        self.refused(401, "admin key", "unload_model", "b")
        self.call("unload_model", "b", headers=self.admin, unload_dependents=True)
        assert not self.call("is_model_ready", "b")
        self.refused(503, "disabled", "infer", "b", text_inputs("x", 1))
        index = self.call("get_model_repository_index")
        assert [(each["name"], each["state"], bool(each["reason"])) for each in index] == [
            ("b", "UNAVAILABLE", True),
            ("org/a", "READY", False),
        ]
        self.call("load_model", "b", headers=self.admin)
        assert self.call("is_model_ready", "b")
        self.call("infer", "b", text_inputs("x", 1))

    def get_inference_statistics(self) -> None:
        def success() -> int:
            [statistics] = self.call("get_inference_statistics", "org/a", "1")["model_stats"]
            return int(statistics["inference_stats"]["success"]["count"])

        before = success()
        self.call("infer", "org/a", text_inputs("x", 1))
        assert success() == before + 1
        everything = self.call("get_inference_statistics")["model_stats"]
        assert {each["name"] for each in everything} == {"org/a", "b"}

    def infer(self) -> None:
        result = self.call("infer", "org/a", text_inputs("Hello", 5), request_id="7", timeout=30_000_000)
        [text] = result.as_numpy("text_output")
        assert text.startswith(b"Hello")
        assert len(text) == len("Hello") + 5
        assert result.get_response()["id"] == "7"

    def register_system_shared_memory(self) -> None:
        self.refused(501, SHM_TEXT, "register_system_shared_memory", "r", "/r", 64)

    def unregister_system_shared_memory(self) -> None:
        self.refused(501, SHM_TEXT, "unregister_system_shared_memory")

    def get_system_shared_memory_status(self) -> None:
        assert self.call("get_system_shared_memory_status") == []
        self.refused(404, "'r'", "get_system_shared_memory_status", "r")

    def register_cuda_shared_memory(self) -> None:
        self.refused(501, SHM_TEXT, "register_cuda_shared_memory", "r", CUDA_HANDLE, 0, 64)

    def unregister_cuda_shared_memory(self) -> None:
        self.refused(501, SHM_TEXT, "unregister_cuda_shared_memory", "r")

    def get_cuda_shared_memory_status(self) -> None:
        assert self.call("get_cuda_shared_memory_status") == []

    def get_trace_settings(self) -> None:
        self.refused(503, "does not support trace", "get_trace_settings")
        self.refused(503, "does not support trace", "get_trace_settings", "org/a")

    def update_trace_settings(self) -> None:
        self.refused(503, "does not support trace", "update_trace_settings", settings={"trace_rate": "1"})

    def get_log_settings(self) -> None:
        self.refused(503, "does not support dynamic logging", "get_log_settings")

    def update_log_settings(self) -> None:
        self.refused(503, "does not support dynamic logging", "update_log_settings", {"log_info": True})

    def generate_request_body(self) -> None:
        """With its twin, for clients that bring an HTTP library of their own."""
        body, header_length = self.call("generate_request_body", text_inputs("Hello", 5))
        assert header_length is not None
        assert len(body) > header_length

    def parse_response_body(self) -> None:
        body = b'{"outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1], "data": ["hi"]}]}'
        assert self.call("parse_response_body", body).as_numpy("text_output").tolist() == ["hi"]


class SyncCalls(Calls):
    """What only the sync client has."""

    def __init__(self, server: RunningServer, client: Any) -> None:
        super().__init__(server, sync_call(client))

    def async_infer(self) -> None:
        asked = [self.call("async_infer", "org/a", text_inputs("x", 3), request_id=str(i)) for i in range(3)]
        assert [one.get_result().get_response()["id"] for one in asked] == ["0", "1", "2"]
        with pytest.raises(InferenceServerException, match="nobody"):
            self.call("async_infer", "nobody", text_inputs("x", 3)).get_result()


class AioCalls(Calls):
    """The same by the aio client."""

    def __init__(self, server: RunningServer, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, aio_call(client, loop))


def test_every_method_has_its_test() -> None:
    for client_class, calls in (
        (triton.InferenceServerClient, SyncCalls),
        (triton_aio.InferenceServerClient, AioCalls),
    ):
        assert set(methods(client_class)) <= set(methods(calls))


@pytest.mark.parametrize("name", methods(triton.InferenceServerClient))
def test_the_sync_client(server: RunningServer, name: str) -> None:
    with triton.InferenceServerClient(server.http_url.removeprefix("http://"), concurrency=3) as client:
        getattr(SyncCalls(server, client), name)()


@pytest.mark.parametrize("name", methods(triton_aio.InferenceServerClient))
def test_the_aio_client(server: RunningServer, name: str) -> None:
    loop = asyncio.new_event_loop()

    async def made() -> Any:
        return triton_aio.InferenceServerClient(server.http_url.removeprefix("http://"))

    client = loop.run_until_complete(made())
    try:
        getattr(AioCalls(server, client, loop), name)()
        loop.run_until_complete(client.close())
    finally:
        loop.close()


def test_a_body_made_by_the_client_and_sent_by_another(server: RunningServer) -> None:
    client = triton.InferenceServerClient
    body, header_length = client.generate_request_body(text_inputs("Hello", 5))
    result = server.client.post(
        f"{server.http_url}/v2/models/org/a/infer",
        content=body,
        headers={"inference-header-content-length": str(header_length)},
    )
    parsed = client.parse_response_body(
        result.content, header_length=int(result.headers["inference-header-content-length"])
    )
    assert len(parsed.as_numpy("text_output")[0]) == len("Hello") + 5
