"""Requests that name their SLO class, through every door of a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until
from tritonclient.utils import InferenceServerException

from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration

HEADER = "x-mooring-slo-class"
USABLE = "'own', 'chat', 'team/nightly', 'best-effort'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("named")
    models = {"first": write_checkpoint(root / "first")}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", models, flags, NULL_ENVIRONMENT) as running:
        for name in ("own", "chat", "team/nightly", "others"):
            body = {"name": name, "ttft_target_s": 600, "tpot_target_s": 600}
            assert running.admin("POST", "/slo-classes", body).status_code == 201
        yield running


class Client:
    """One tenant, and a request of it through each door; each returns what the answer says of the class."""

    def __init__(self, server: RunningServer, name: str) -> None:
        self.server, self.name = server, name
        assert server.admin("POST", "/tenants", {"name": name}).status_code == 201
        changes = {"slo_class": "own", "allowed_slo_classes": ["chat", "team/nightly"]}
        changed = server.admin("PATCH", f"/tenants/{name}", changes)
        assert changed.json()["allowed_slo_classes"] == ["chat", "team/nightly"]
        self.key: str = server.admin("POST", f"/tenants/{name}/keys", {}).json()["key"]
        self.headers = {"authorization": f"Bearer {self.key}"}
        self.grpc_target = server.grpc_target

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        url = f"{self.server.http_url}{path}"
        return self.server.client.post(
            url, json={"model": "first", **body}, headers={**self.headers, **headers}
        )

    def completion(self, name: str) -> None:
        answer = self.openai().completions.create(
            model="first", prompt="hi", max_tokens=2, extra_body={"service_tier": name}
        )
        assert (answer.model_extra or {})["service_tier"] == name

    def chat(self, name: str) -> None:
        answer = self.openai().chat.completions.create(
            model="first",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=2,
            service_tier=name,  # type: ignore[arg-type]  # the client has OpenAI's own names
        )
        assert answer.service_tier == name

    def chunks(self, name: str) -> None:
        chunks = self.openai().chat.completions.create(
            model="first",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=2,
            stream=True,
            service_tier=name,  # type: ignore[arg-type]
        )
        assert {chunk.service_tier for chunk in chunks} == {name}

    def header(self, name: str) -> None:
        answer = self.post("/v1/completions", {"prompt": "hi", "max_tokens": 2}, **{HEADER: name})
        self.check(answer)
        assert "service_tier" not in answer.json()

    def native(self, name: str) -> None:
        metadata = (("authorization", f"Bearer {self.key}"), (HEADER, name))
        with grpc.insecure_channel(self.grpc_target) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            request = pb.GenerateTextRequest(model="first", prompt="hi", max_tokens=2)
            list(stub.Generate(request, metadata=metadata))

    def generate(self, name: str) -> None:
        body = {"text_input": "hi", "max_tokens": 2, "parameters": {"slo_class": name}}
        url = f"{self.server.http_url}/v2/models/first/generate"
        self.check(self.server.client.post(url, json=body, headers=self.headers))

    def generate_by_header(self, name: str) -> None:
        url = f"{self.server.http_url}/v2/models/first/generate"
        body = {"text_input": "hi", "max_tokens": 2}
        self.check(self.server.client.post(url, json=body, headers={**self.headers, HEADER: name}))

    def infer(self, name: str) -> None:
        prompt = triton_http.InferInput("text_input", [1], "BYTES")
        prompt.set_data_from_numpy(np.array([b"hi"], dtype=object))
        with triton_http.InferenceServerClient(self.server.http_url.removeprefix("http://")) as client:
            client.infer("first", [prompt], headers=self.headers, parameters={"slo_class": name})

    def grpc_infer(self, name: str, headers: dict[str, str] | None = None) -> None:
        with triton_grpc.InferenceServerClient(self.grpc_target) as client:
            client.infer("first", self.inputs(), headers=self.headers, parameters={"slo_class": name})

    def grpc_infer_by_metadata(self, name: str) -> None:
        with triton_grpc.InferenceServerClient(self.grpc_target) as client:
            client.infer("first", self.inputs(), headers={**self.headers, HEADER: name})

    def grpc_stream(self, name: str) -> None:
        async def one() -> None:
            async def requests() -> Any:
                yield {"model_name": "first", "inputs": self.inputs()}

            async with triton_aio.InferenceServerClient(self.grpc_target) as client:
                async for _, error in client.stream_infer(requests(), headers={**self.headers, HEADER: name}):
                    if error is not None:
                        raise error

        asyncio.run(one())

    def inputs(self) -> list[Any]:
        prompt = triton_grpc.InferInput("text_input", [1], "BYTES")
        prompt.set_data_from_numpy(np.array([b"hi"], dtype=object))
        return [prompt]

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.server.http_url}/v1", api_key=self.key, max_retries=0)

    def check(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            raise RefusedError(answer)

    def counted(self) -> dict[str, int]:
        """Its requests that have ended, by class."""
        entries = self.server.admin("GET", "/slo").json()
        return {
            each["slo_class"]: each["windows"]["1h"]["requests"]
            for each in entries
            if each["tenant"] == self.name
        }


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.text)
        assert answer.status_code == 403


DOORS: dict[str, Callable[[Client, str], None]] = {
    name: getattr(Client, name)
    for name in (
        *("completion", "chat", "chunks", "header", "native", "generate", "generate_by_header", "infer"),
        *("grpc_infer", "grpc_infer_by_metadata", "grpc_stream"),
    )
}
REFUSALS = (RefusedError, openai.PermissionDeniedError, grpc.RpcError, InferenceServerException)


@pytest.mark.parametrize("door", DOORS)
def test_a_request_is_counted_in_the_class_that_it_names(server: RunningServer, door: str) -> None:
    client, ask = Client(server, f"by-{door}"), DOORS[door]
    for name in ("chat", "team/nightly", "team/nightly", "best-effort", "own"):
        ask(client, name)
    expected = {"chat": 1, "team/nightly": 2, "best-effort": 1, "own": 1}
    until(lambda: client.counted() == expected)


@pytest.mark.parametrize("door", DOORS)
def test_what_it_may_not_use_is_refused_and_looks_like_what_there_is_not(
    server: RunningServer, door: str
) -> None:
    client, ask = Client(server, f"not-{door}"), DOORS[door]
    told = []
    for name in ("others", "nobody"):
        with pytest.raises(REFUSALS) as caught:
            ask(client, name)
        if isinstance(caught.value, grpc.RpcError):
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        told.append(str(caught.value).replace(name, "..."))
        assert USABLE in str(caught.value)
    if door != "native":  # whose errors tell the time
        assert told[0] == told[1]
    assert client.counted() == {}


def test_auto_default_and_null_are_the_tenants_own(server: RunningServer) -> None:
    client = Client(server, "plain")
    for value, echoed in (("auto", "default"), ("default", "default"), (None, None)):
        body = {"prompt": "hi", "max_tokens": 2, "service_tier": value}
        answer = client.post("/v1/completions", body).json()
        assert answer.get("service_tier") == echoed
    until(lambda: client.counted() == {"own": 3})


def test_the_bodys_word_comes_before_the_headers(server: RunningServer) -> None:
    client = Client(server, "both")
    body = {"prompt": "hi", "max_tokens": 2, "service_tier": "chat"}
    assert client.post("/v1/completions", body, **{HEADER: "others"}).json()["service_tier"] == "chat"
    refused = client.post("/v1/completions", {**body, "service_tier": "others"}, **{HEADER: "chat"})
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"], error["param"]) == (
        *(403, "permission_error", "permission_denied", "service_tier"),
    )
