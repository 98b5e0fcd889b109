"""Every method of Triton's gRPC clients, sync and aio, against a real server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.kserve_doors import text_inputs
from support.running_server import RunningServer
from support.server_probes import SLOW_STEP, metric
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.triton_calls import ClientCalls, aio_call, methods, sync_call
from support.until import until
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from mooring.v1 import inference_pb2 as native_pb
from mooring.v1 import inference_pb2_grpc as native_grpc

pytestmark = pytest.mark.integration

NULL = ["--engine", "null", "--memory-budget", "64MiB"]
SHM_TEXT = "shared memory is not supported"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("kserve")
    models = {name: write_checkpoint(root / name, seed) for seed, name in enumerate(("a", "b"))}
    with RunningServer(root / "data", models, NULL, NULL_ENVIRONMENT | SLOW_STEP) as running:
        yield running


class Calls(ClientCalls):
    """What the sync and the aio client have alike."""

    def refused(self, status: str, words: str, *call: Any, **arguments: Any) -> None:
        with pytest.raises(InferenceServerException) as caught:
            self.call(*call, **arguments)
        assert caught.value.status() == f"StatusCode.{status}"
        assert words in caught.value.message()

    def is_server_live(self) -> None:
        assert self.call("is_server_live")

    def is_server_ready(self) -> None:
        assert self.call("is_server_ready")

    def is_model_ready(self) -> None:
        assert self.call("is_model_ready", "a")
        assert self.call("is_model_ready", "a", "1")
        assert not self.call("is_model_ready", "a", "2")
        assert not self.call("is_model_ready", "nobody")

    def get_server_metadata(self) -> None:
        metadata = self.call("get_server_metadata", as_json=True)
        assert metadata["name"] == "mooring"
        assert {"statistics", "model_repository", "model_configuration"} <= set(metadata["extensions"])

    def get_model_metadata(self) -> None:
        metadata = self.call("get_model_metadata", "a")
        assert (metadata.name, list(metadata.versions)) == ("a", ["1"])
        inputs = {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs}
        assert inputs["text_input"] == ("BYTES", [1])
        assert inputs["stop_words"] == ("BYTES", [-1])
        assert inputs["max_tokens"] == ("INT32", [1])
        assert "text_output" in {each.name for each in metadata.outputs}
        self.refused("NOT_FOUND", "nobody", "get_model_metadata", "nobody")
        self.refused("NOT_FOUND", "version 3", "get_model_metadata", "a", "3")

    def get_model_config(self) -> None:
        config = self.call("get_model_config", "a").config
        assert (config.name, config.backend, config.max_batch_size) == ("a", "null", 0)
        assert config.model_transaction_policy.decoupled
        assert [each.name for each in config.input if not each.optional] == ["text_input"]

    def get_model_repository_index(self) -> None:
        index = self.call("get_model_repository_index").models
        assert [(each.name, each.version, each.state) for each in index] == [
            ("a", "1", "READY"),
            ("b", "1", "READY"),
        ]

    def load_model(self) -> None:
        self.refused("UNAUTHENTICATED", "admin key", "load_model", "a")
        self.refused("NOT_FOUND", "nobody", "load_model", "nobody", headers=self.admin)
        self.call("load_model", "a", headers=self.admin)

    def unload_model(self) -> None:
        self.refused("UNAUTHENTICATED", "admin key", "unload_model", "b")
        self.call("unload_model", "b", headers=self.admin, unload_dependents=True)
        assert not self.call("is_model_ready", "b")
        self.refused("UNAVAILABLE", "disabled", "infer", "b", text_inputs("x"))
        self.refused("UNAVAILABLE", "disabled", "get_model_metadata", "b")
        index = self.call("get_model_repository_index").models
        assert [(each.name, each.state, bool(each.reason)) for each in index] == [
            ("a", "READY", False),
            ("b", "UNAVAILABLE", True),
        ]
        self.call("load_model", "b", headers=self.admin)
        assert self.call("is_model_ready", "b")
        self.call("infer", "b", text_inputs("x", max_tokens=1))

    def get_inference_statistics(self) -> None:
        def success() -> int:
            [statistics] = self.call("get_inference_statistics", "a", "1").model_stats
            return int(statistics.inference_stats.success.count)

        before = success()
        self.call("infer", "a", text_inputs("x", max_tokens=1))
        assert success() == before + 1
        assert {each.name for each in self.call("get_inference_statistics").model_stats} == {"a", "b"}

    def infer(self) -> None:
        result = self.call("infer", "a", text_inputs("Hello", max_tokens=5), request_id="7")
        text = result.as_numpy("text_output")[0].decode()
        assert text.startswith("Hello")
        assert len(text) == len("Hello") + 5
        assert result.get_response().id == "7"
        self.refused(
            "DEADLINE_EXCEEDED", "", "infer", "a", text_inputs("x", max_tokens=400), client_timeout=0.2
        )

    def register_system_shared_memory(self) -> None:
        self.refused("UNIMPLEMENTED", SHM_TEXT, "register_system_shared_memory", "r", "/r", 64)

    def unregister_system_shared_memory(self) -> None:
        self.refused("UNIMPLEMENTED", SHM_TEXT, "unregister_system_shared_memory")

    def get_system_shared_memory_status(self) -> None:
        assert not self.call("get_system_shared_memory_status").regions
        self.refused("NOT_FOUND", "'r'", "get_system_shared_memory_status", "r")

    def register_cuda_shared_memory(self) -> None:
        self.refused("UNIMPLEMENTED", SHM_TEXT, "register_cuda_shared_memory", "r", b"aGFuZGxl", 0, 64)

    def unregister_cuda_shared_memory(self) -> None:
        self.refused("UNIMPLEMENTED", SHM_TEXT, "unregister_cuda_shared_memory", "r")

    def get_cuda_shared_memory_status(self) -> None:
        assert not self.call("get_cuda_shared_memory_status").regions

    def get_trace_settings(self) -> None:
        self.refused("UNAVAILABLE", "does not support trace", "get_trace_settings")

    def update_trace_settings(self) -> None:
        self.refused(
            "UNAVAILABLE", "does not support trace", "update_trace_settings", settings={"trace_rate": "1"}
        )

    def get_log_settings(self) -> None:
        self.refused("UNAVAILABLE", "does not support dynamic logging", "get_log_settings")

    def update_log_settings(self) -> None:
        self.refused(
            "UNAVAILABLE", "does not support dynamic logging", "update_log_settings", {"log_info": True}
        )


class SyncCalls(Calls):
    """What only the sync client has."""

    def __init__(self, server: RunningServer, client: Any) -> None:
        super().__init__(server, sync_call(client))

    def async_infer(self) -> None:
        done = threading.Event()
        seen: list[Any] = []

        def callback(result: Any, error: Any) -> None:
            seen.append((result, error))
            done.set()

        self.call("async_infer", "a", text_inputs("x", max_tokens=2), callback)
        assert done.wait(10)
        assert seen[0][1] is None
        context = self.call("async_infer", "a", text_inputs("x", max_tokens=400), lambda result, error: None)
        context.cancel()

    def start_stream(self) -> None:
        seen: list[Any] = []
        self.call("start_stream", lambda result, error: seen.append((result, error)))
        for request_id in ("1", "2"):
            inputs = text_inputs("x", max_tokens=4, stream=True)
            self.call("async_stream_infer", "a", inputs, request_id=request_id)
        self.call("async_stream_infer", "nobody", text_inputs("x"))
        self.call("stop_stream")
        assert [error.message().count("nobody") for _, error in seen if error] == [1]
        ids = [result.get_response().id for result, error in seen if error is None]
        assert sorted(ids) == ["1"] * 4 + ["2"] * 4

    async_stream_infer = start_stream

    def stop_stream(self) -> None:
        started = time.monotonic()
        self.call("start_stream", lambda result, error: None)
        self.call("async_stream_infer", "a", text_inputs("x", max_tokens=400, stream=True))
        self.call("stop_stream", cancel_requests=True)
        assert time.monotonic() - started < 7, "it does not wait for eight seconds of tokens"


class AioCalls(Calls):
    """What only the aio client has."""

    def __init__(self, server: RunningServer, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, aio_call(client, loop))
        self.client, self.loop = client, loop

    def stream_infer(self) -> None:
        async def ask() -> list[str]:
            async def requests() -> Any:
                yield {"model_name": "a", "inputs": text_inputs("x", max_tokens=6, stream=True)}

            responses = self.client.stream_infer(requests())
            return [result.as_numpy("text_output")[0].decode() async for result, _ in responses]

        pieces = self.loop.run_until_complete(ask())
        assert len(pieces) == 6
        assert len("".join(pieces)) == 6


def test_every_method_has_its_test() -> None:
    sync, aio = set(methods(triton.InferenceServerClient)), set(methods(triton_aio.InferenceServerClient))
    assert sync | aio <= set(dir(SyncCalls)) | set(dir(AioCalls))
    assert all(callable(getattr(SyncCalls, name)) for name in sync)
    assert all(callable(getattr(AioCalls, name)) for name in aio)


@pytest.mark.parametrize("name", methods(triton.InferenceServerClient))
def test_the_sync_client(server: RunningServer, name: str) -> None:
    with triton.InferenceServerClient(server.grpc_target) as client:
        getattr(SyncCalls(server, client), name)()


@pytest.mark.parametrize("name", methods(triton_aio.InferenceServerClient))
def test_the_aio_client(server: RunningServer, name: str) -> None:
    loop = asyncio.new_event_loop()

    async def made() -> Any:
        return triton_aio.InferenceServerClient(server.grpc_target)

    client = loop.run_until_complete(made())
    try:
        getattr(AioCalls(server, client, loop), name)()
        loop.run_until_complete(client.close())
    finally:
        loop.close()


def test_what_is_cancelled_leaves_the_engine(server: RunningServer) -> None:
    def until_running(count: int) -> None:
        until(lambda: metric(server, "vllm:num_requests_running") == count, timeout_s=5)

    with triton.InferenceServerClient(server.grpc_target) as client:
        client.start_stream(lambda result, error: None)
        for _ in range(4):
            client.async_stream_infer("a", text_inputs("x", max_tokens=500, stream=True))
        until_running(4)
        client.stop_stream(cancel_requests=True)
        until_running(0)
        call = client.async_infer("a", text_inputs("x", max_tokens=500), lambda result, error: None)
        until_running(1)
        call.cancel()
        until_running(0)
    assert "a bug" not in server.log()


def test_the_other_services_are_on_the_same_port(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "mooring.v1.Inference", "inference.GRPCInferenceService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=5)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()

        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        ]
        listed, described = reflection.ServerReflectionInfo(iter(asked), timeout=5)
        names = {each.name for each in listed.list_services_response.service}
        assert {"mooring.v1.Inference", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
        assert (
            service_pb2.DESCRIPTOR.serialized_pb in described.file_descriptor_response.file_descriptor_proto
        )

        request = native_pb.GenerateTextRequest(model="a", prompt="x", max_tokens=2)
        assert list(native_grpc.InferenceStub(channel).Generate(request, timeout=10))
