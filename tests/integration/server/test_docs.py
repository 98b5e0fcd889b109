"""The pages say what the code does: tables against the code, examples against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.paths import ROOT
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

from mooring.errors import STATUS
from router.doors.openai.bodies import _NEUTRAL, ChatCompletionRequest, CompletionRequest

pytestmark = pytest.mark.integration

DOCS = ROOT / "docs"
HTTP = (DOCS / "http.md").read_text()
GRPC = (DOCS / "grpc.md").read_text()
KSERVE = (DOCS / "kserve.md").read_text()
METRICS = (DOCS / "metrics.md").read_text()
CLIENTS = (DOCS / "clients.md").read_text()
README = (DOCS.parent / "README.md").read_text()
OTHER_CLIENTS = DOCS.parent / ".venv-clients" / "bin"  # `make test` makes it
# Neither Debian nor a small Python package has these, so their examples do not run here.
NOT_HERE = ("websocat", "grpcurl", "vllm", "aiperf", "genai-perf")


def examples(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


SHELL_EXAMPLES = [
    each
    for each in [*examples(HTTP, "bash"), *examples(KSERVE, "bash"), *examples(README, "")]
    if "curl " in each
]
PYTHON_EXAMPLES = [
    each for page in (HTTP, GRPC, KSERVE, CLIENTS, README) for each in examples(page, "python")
]
CLIENT_COMMANDS = [
    each
    for each in examples(CLIENTS, "bash")
    if not re.search(rf"^(\s*\| )?({'|'.join(NOT_HERE)}) ", each, re.M)
]


def is_of_others(example: str) -> bool:
    """Whether it needs what we do not: a client that takes seconds to import."""
    return bool(re.search(r"langchain_openai|litellm|^llm ", example, re.MULTILINE))


def numbers_of(listed: list[str]) -> list[Any]:
    """A parameter for each example."""
    return [
        pytest.param(number, marks=[pytest.mark.slow] if is_of_others(each) else [])
        for number, each in enumerate(listed)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("docs")
    models = {name: write_checkpoint(root / name, seed) for seed, name in enumerate(("smollm2", "pythonlm"))}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", models, flags, NULL_ENVIRONMENT) as running:
        yield running


def run(server: RunningServer, command: list[str], source: str, **environment: str) -> str:
    source = source.replace("127.0.0.1:8000", server.http_url.removeprefix("http://"))
    source = source.replace("127.0.0.1:8001", server.grpc_target)
    ended = subprocess.run(
        [*command, source],
        env={**os.environ, "MOORING_DATA_DIR": str(server.data_dir), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("number", range(len(SHELL_EXAMPLES)))
def test_shell_examples_work_as_pasted(server: RunningServer, number: int) -> None:
    commands = [
        line
        for line in SHELL_EXAMPLES[number].replace("\\\n", "").splitlines()
        if line.startswith(("curl ", "KEY="))
    ]
    script = "set -e\n" + "\n".join(commands).replace("curl ", "curl --silent --show-error --fail ")
    assert run(server, ["bash", "-c"], script)


@pytest.mark.parametrize("number", numbers_of(PYTHON_EXAMPLES))
def test_python_examples_work_as_pasted(server: RunningServer, number: int) -> None:
    example = PYTHON_EXAMPLES[number]
    python = str(OTHER_CLIENTS / "python") if is_of_others(example) else sys.executable
    assert run(server, [python, "-c"], example).strip()


@pytest.mark.parametrize("number", numbers_of(CLIENT_COMMANDS))
def test_commands_of_clients_work_as_pasted(server: RunningServer, tmp_path: Path, number: int) -> None:
    script = "set -e\n" + CLIENT_COMMANDS[number].replace("curl ", "curl --silent --show-error --fail ")
    path = f"{os.environ['PATH']}:{OTHER_CLIENTS}"
    assert run(server, ["bash", "-c"], script, PATH=path, LLM_USER_PATH=str(tmp_path)).strip()


def test_the_table_of_errors_is_the_one_of_the_code() -> None:
    for error, status in STATUS.items():
        assert f"| `{error.code}` | {status.http} | `{status.grpc}` | `{status.openai_type}` |" in HTTP


def test_every_field_is_in_the_page_as_served_or_refused() -> None:
    served = {*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields}
    for name in {*served, *_NEUTRAL}:
        assert f"`{name}`" in HTTP or f"`{name}." in HTTP, name


def test_every_route_is_in_the_page(server: RunningServer) -> None:
    for path in server.client.get(f"{server.http_url}/openapi.json").json()["paths"]:
        short = path.removeprefix("/admin/v1").replace("{registration_id}", "{id}")
        assert re.search(rf"`[A-Z]+ {re.escape(short)}`", HTTP), path


def test_the_page_of_metrics_has_each_with_its_kind_and_labels(server: RunningServer) -> None:
    server.client.post(
        f"{server.http_url}/v1/completions", json={"model": "smollm2", "prompt": "a", "max_tokens": 2}
    )
    assert server.client.get(f"{server.http_url}/admin/v1/tenants").status_code == 401
    headers = {"authorization": f"Bearer {server.new_key('metrics')}"}
    server.admin(
        "POST", "/slo-classes", {"name": "gold", "ttft_target_s": 60, "tpot_target_s": 60, "goal": 0.5}
    ).raise_for_status()
    server.admin("PATCH", "/tenants/metrics", {"slo_class": "gold"}).raise_for_status()
    body = {"model": "smollm2", "prompt": "a", "max_tokens": 2}
    assert server.client.post(f"{server.http_url}/v1/completions", json=body, headers=headers).is_success
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(server.client.get(f"{server.http_url}/metrics").text)
        if not family.name.endswith("_created")
    }
    described = {}
    for section in METRICS.split("\n## ")[1:]:
        common = re.findall(r"`(\w+)`", next(iter(re.findall(r"^Labels?: ([^.]*)", section, re.M)), ""))
        for row in re.findall(r"^\| (`(?:vllm:|mooring_).*)", section, re.M):
            names, rest = row.split(" | ", 1)
            for name in re.findall(r"`([\w:]+)`", names):
                described[name] = (common, rest)
    assert families.keys() == described.keys()
    for name, family in families.items():
        common, rest = described[name]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.samples, f"{name} shows nothing"
        for label in labels - {*common}:
            assert f"`{label}`" in rest, (name, label)
        for label in common:
            assert label in labels, (name, label)
        if "the same under the name" not in rest:
            assert family.type in rest, name
