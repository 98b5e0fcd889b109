"""A sample that has to be trained is made beside the server, in a real process, and served when it is there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from support.paths import ROOT
from support.running_server import RunningServer
from support.server_probes import check_all_gone, check_no_fault, complete, family
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration

FOR_EVER, SHORT = 10_000_000, 2
SAMPLE = "pythonlm"
FLAGS = ["--engine", "null", "--memory-budget", "128MiB", "--model", f"{SAMPLE}=sample:{SAMPLE}"]
PATHS = (str(ROOT / "tests" / "support" / "short_samples"), str(ROOT))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("samples") / "a")


@contextmanager
def started(data_dir: Path, checkpoint: Path, num_steps: int) -> Iterator[RunningServer]:
    environment = {
        **NULL_ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(PATHS),
        "SAMPLE_STEPS": str(num_steps),
    }
    with RunningServer(data_dir, {"a": checkpoint}, FLAGS, environment) as server:
        yield server


def ask(server: RunningServer) -> Any:
    body = {"model": SAMPLE, "prompt": "import os", "max_tokens": 2}
    return server.client.post(f"{server.http_url}/v1/completions", json=body)


def ask_over_grpc(server: RunningServer) -> list[Any]:
    with grpc.insecure_channel(server.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = pb.GenerateTextRequest(model=SAMPLE, prompt="import os", max_tokens=2)
        return list(stub.Generate(request, timeout=20))


def listed(server: RunningServer) -> dict[str, set[str]]:
    """Names of the models that take requests, by the door that lists them."""
    with grpc.insecure_channel(server.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        over_grpc = {model.name for model in stub.ListModels(pb.ListModelsRequest(), timeout=20).models}
    openai = server.client.get(f"{server.http_url}/v1/models").json()["data"]
    kserve = server.client.post(f"{server.http_url}/v2/repository/index", json={"ready": True}).json()
    return {
        "openai": {model["id"] for model in openai},
        "grpc": over_grpc,
        "kserve": {model["name"] for model in kserve},
    }


def makers(server: RunningServer) -> list[psutil.Process]:
    """The processes that make samples."""
    return [each for each in family(server) if "ops.samples" in " ".join(each.cmdline())]


def is_training(server: RunningServer) -> bool:
    return bool(re.search(r"train, \d+% done", ask(server).json().get("error", {}).get("message", "")))


@pytest.mark.slow
def test_a_sample_is_refused_with_its_progress_until_it_is_there_and_found_at_the_next_start(
    tmp_path: Path, checkpoint: Path
) -> None:
    data_dir = tmp_path / "data"
    with started(data_dir, checkpoint, FOR_EVER) as server:
        assert complete(server).status_code == 200  # nobody waits for the sample
        until(lambda: is_training(server))
        check_is_not_ready(server)
        check_yields(makers(server))
        assert listed(server) == {"openai": {"a"}, "grpc": {"a"}, "kserve": {"a"}}
        (row,) = [each for each in server.status()["deployments"] if each["name"] == SAMPLE]
        assert row["residency"] == "cold"
        assert re.search(r"train, \d+% done", row["reason"])
        assert "train" in shown_status(server)
        assert f"model {SAMPLE} is being made: {SAMPLE}: train" in server.log()
        processes = family(server)
        assert len(makers(server)) == 2  # the maker and its trainer
    check_all_gone(processes)

    with started(data_dir, checkpoint, SHORT) as server:
        until(lambda: ask(server).status_code == 200)
        assert listed(server) == {"openai": {"a", SAMPLE}, "grpc": {"a", SAMPLE}, "kserve": {"a", SAMPLE}}
        assert ask_over_grpc(server)
        check_no_fault(server)

    with started(data_dir, checkpoint, SHORT) as server:
        assert ask(server).status_code == 200  # at once: it was done
        assert makers(server) == []
        assert "being made" not in server.log()


def check_is_not_ready(server: RunningServer) -> None:
    answer = ask(server)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_not_ready"
    assert int(answer.headers["retry-after"]) >= 1
    with pytest.raises(grpc.RpcError) as refused:
        ask_over_grpc(server)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "train" in refused.value.details()
    trailing = dict(refused.value.trailing_metadata())
    assert trailing["error-code"] == "model_not_ready"
    assert int(trailing["retry-after"]) >= 1
    assert server.client.get(f"{server.http_url}/v2/models/{SAMPLE}/ready").status_code != 200


def check_yields(processes: list[psutil.Process]) -> None:
    """They take only time that nobody else wants."""
    for process in processes:
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        assert process.nice() == 19


def shown_status(server: RunningServer) -> str:
    command = [sys.executable, "-m", "mooring.cli", "--data-dir", str(server.data_dir), "status"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.slow
def test_the_work_ends_with_a_server_that_is_killed(tmp_path: Path, checkpoint: Path) -> None:
    with started(tmp_path / "data", checkpoint, FOR_EVER) as server:
        until(lambda: len(makers(server)) == 2)
        processes = family(server)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(20)
        check_all_gone(processes)


@pytest.mark.slow
def test_a_sample_that_cannot_be_made_is_withheld_with_the_reason(tmp_path: Path, checkpoint: Path) -> None:
    with started(tmp_path / "data", checkpoint, FOR_EVER) as server:
        until(lambda: len(makers(server)) == 2)
        trainer = makers(server)[-1]
        trainer.kill()
        until(lambda: ask(server).json()["error"]["code"] == "model_unavailable")
        assert f"training {SAMPLE} failed" in ask(server).json()["error"]["message"]
        assert complete(server).status_code == 200


def test_a_sample_that_nobody_knows_is_an_error_of_the_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mooring.cli", "serve", "--data-dir", str(tmp_path), "--engine", "null"]
    flags = ["--http-port", "0", "--grpc-port", "0", "--model", "a=sample:b"]
    ended = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "no sample 'b'; there are smollm2, pythonlm, draft" in ended.stderr
