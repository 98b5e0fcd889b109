"""A server's end: requests under way finish, nothing is left behind, and the next start knows everything."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support.running_server import RunningServer
from support.server_probes import SLOW_STEP, Stream, check_all_gone, complete, family
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration

NULL = ["--engine", "null", "--memory-budget", "64MiB"]
SLOW = {**NULL_ENVIRONMENT, **SLOW_STEP}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lifecycle") / "a")


def generate(server: RunningServer, key: str | None = None, model: str = "a") -> list[Any]:
    """A request over gRPC."""
    metadata = [("authorization", f"Bearer {key}")] if key else []
    target = server.grpc_target.replace("0.0.0.0", "127.0.0.1")
    with grpc.insecure_channel(target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = pb.GenerateTextRequest(model=model, prompt="hello", max_tokens=2)
        return list(stub.Generate(request, metadata=metadata, timeout=20))


def test_a_server_drains_at_sigterm_and_the_next_start_serves_the_same_to_the_same(
    tmp_path: Path, checkpoint: Path
) -> None:
    data_dir = tmp_path / "data"
    with RunningServer(data_dir, {"a": checkpoint}, NULL, SLOW) as server:
        server.admin("PATCH", "/deployments/a", {"priority": 4, "max_model_len": 200})
        server.admin("POST", "/tenants", {"name": "acme"})
        key = server.admin("POST", "/tenants/acme/keys", {}).json()["key"]
        stream = Stream(server, max_tokens=180)
        stream.read(2)
        processes = family(server)
        assert (
            len(processes) == 4
        )  # the server, its worker, the starter of text processes and the model's own

        server.process.send_signal(signal.SIGTERM)
        check_refuses_from_now_on(server)
        stream.read()
        stream.close()
        assert stream.done
        assert len(stream.text) == 180
        assert server.process.wait(20) == 0
        check_all_gone(processes)
        assert not (data_dir / "server.json").exists()

    # The same folder, no --model, and doors that others can reach.
    flags = [*NULL, "--http-host", "0.0.0.0", "--grpc-host", "0.0.0.0", "--behind-proxy"]
    with RunningServer(data_dir, {}, flags, SLOW) as server:
        policy = server.admin("GET", "/deployments/a").json()["policy"]
        assert (policy["priority"], policy["max_model_len"]) == (4, 200)
        check_needs_a_key(server, key)
        check_second_signal_ends_at_once(server, key)


def test_a_server_with_no_settings_takes_a_part_of_what_the_machine_has(
    tmp_path: Path, checkpoint: Path
) -> None:
    with RunningServer(tmp_path / "data", {"a": checkpoint}) as server:
        assert complete(server).status_code == 200
        (device,) = server.status()["devices"]
        free_bytes = psutil.virtual_memory().available
        assert free_bytes / 4 < device["budget_bytes"] < free_bytes


def check_refuses_from_now_on(server: RunningServer) -> None:
    ready = f"{server.http_url}/health/ready"
    until(lambda: server.client.get(ready).status_code != 200, "ready goes false at once", timeout_s=10)
    assert server.client.get(f"{server.http_url}/health/live").status_code == 200
    refused = complete(server)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert int(refused.headers["retry-after"]) >= 1
    with pytest.raises(grpc.RpcError) as error:
        generate(server)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ("error-code", "shutting_down") in [tuple(pair) for pair in error.value.trailing_metadata()]


def check_needs_a_key(server: RunningServer, key: str) -> None:
    for wrong in (None, "mk-wrong", server.admin_key):
        refused = complete(server, wrong)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(grpc.RpcError) as error:
            generate(server, wrong)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert server.client.get(f"{server.http_url}/v1/models").status_code == 401
    assert complete(server, key).status_code == 200
    assert generate(server, key)[-1].usage.completion_tokens == 2


def check_second_signal_ends_at_once(server: RunningServer, key: str) -> None:
    stream = Stream(server, max_tokens=190, key=key)
    stream.read(1)
    processes = family(server)
    server.process.send_signal(signal.SIGINT)
    check_refuses_with_key(server, key)
    assert server.process.poll() is None, "one Ctrl-C waits for what runs"
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == -signal.SIGINT, "having waited it would end with 0"
    check_all_gone(processes)
    stream.close()


def check_refuses_with_key(server: RunningServer, key: str) -> None:
    until(lambda: complete(server, key).status_code == 503, timeout_s=10)


def test_what_does_not_end_within_the_grace_period_is_told_why(tmp_path: Path, checkpoint: Path) -> None:
    environment = {**SLOW, "MOORING_SHUTDOWN_GRACE_S": "0.3"}
    with RunningServer(tmp_path / "data", {"a": checkpoint}, NULL, environment) as server:
        stream = Stream(server, max_tokens=400)
        stream.read(2)
        processes = family(server)
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        stream.read()
        stream.close()
        assert stream.error is not None
        assert stream.error["code"] == "shutting_down"
        assert server.process.wait(20) == 0
        assert time.monotonic() - started_s < 7
        check_all_gone(processes)


def test_while_it_starts_no_model_is_said_not_to_exist(tmp_path: Path, checkpoint: Path) -> None:
    class Asked(RunningServer):
        def _ready(self) -> bool:
            seen.add(complete(self).status_code)
            return super()._ready()

    seen: set[int] = set()
    with Asked(tmp_path / "data", {"a": checkpoint}, NULL, NULL_ENVIRONMENT) as server:
        assert seen <= {200, 503}
        assert complete(server).status_code == 200


def test_a_start_can_be_interrupted(tmp_path: Path, checkpoint: Path) -> None:
    server = RunningServer(tmp_path / "data", {"a": checkpoint}, NULL)
    try:
        deadline = time.monotonic() + 20
        while len(processes := family(server)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)  # its worker has begun and is far from ready
        assert server.process.wait(5) == 0, server.log()
        check_all_gone(processes)
        assert "ready:" not in server.log()
    finally:
        server.kill()
        server.client.close()
