"""The container files name what exists: settings, paths, routes, services. No daemon is needed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT
from support.programs import need_program

from mooring.config import Settings, setting_names, variable_name

pytestmark = pytest.mark.integration

DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VARIABLES = {variable_name(name) for name in setting_names()}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(word, arguments) of each instruction, continued lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, rest in (line.split(maxsplit=1) for line in joined.splitlines() if line)]


def arguments(dockerfile: Path, wanted: str) -> list[str]:
    return [rest for word, rest in instructions(dockerfile) if word == wanted]


def compose(**environment: str) -> dict[str, Any]:
    """The compose file as docker-compose understands it: checked, anchors and variables filled in."""
    program = need_program("docker-compose", "docker-compose")
    ended = subprocess.run(
        [program, "--profile", "gpu", "config"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = yaml.safe_load(ended.stdout)
    return found


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_names_what_exists(dockerfile: Path) -> None:
    for sources in arguments(dockerfile, "COPY"):
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), source
    for image in arguments(dockerfile, "FROM"):
        assert re.search(r":[\w.-]*\d", image), f"{image} is not pinned to a version"
    variables = re.findall(r"(MOORING_\w+)=", " ".join(arguments(dockerfile, "ENV")))
    assert variables
    assert set(variables) <= VARIABLES
    ports = {int(port) for rest in arguments(dockerfile, "EXPOSE") for port in rest.split()}
    assert ports == {Settings().http_port, Settings().grpc_port}
    assert arguments(dockerfile, "USER") == ["mooring"], "not root"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_starts_and_checks_a_program_that_exists(dockerfile: Path) -> None:
    (entry,), (command,) = arguments(dockerfile, "ENTRYPOINT"), arguments(dockerfile, "CMD")
    assert [*json.loads(entry), *json.loads(command)] == ["mooring", "serve"]
    (check,) = arguments(dockerfile, "HEALTHCHECK")
    _, flag, module, folder = json.loads(check[check.index("[") :])
    assert (flag, importlib.util.find_spec(module) is not None) == ("-m", True)
    assert f"MOORING_DATA_DIR={folder} " in " ".join(arguments(dockerfile, "ENV"))


def test_what_is_secret_or_large_stays_out_of_images_and_commits() -> None:
    dockerignore = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "deploy/secrets"} <= set(dockerignore)
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().split()
    assert not re.search(r"password: *\S", (ROOT / "docker-compose.yml").read_text(), re.IGNORECASE)


def test_the_compose_file_is_valid_and_names_what_exists() -> None:
    found = compose(MOORING_MEMORY_BUDGET="5GiB")
    assert found["services"].keys() == {"server", "server-gpu", "postgres", "prometheus", "grafana"}
    for name, service in found["services"].items():
        assert service["read_only"] is True, name
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["cap_drop"] == ["ALL"], name
        assert service["mem_limit"], name
        assert service["pids_limit"] > 0, name
        if "build" in service:
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file()
            variables = {key for key in service["environment"] if key.startswith("MOORING_")}
            assert variables <= VARIABLES
        else:
            assert "healthcheck" in service, name
            assert re.search(r":v?\d", service["image"]), f"{service['image']} is not pinned"
        for port in service.get("ports", ()):
            assert str(port if isinstance(port, str) else port["host_ip"]).startswith("127.0.0.1")
    assert found["services"]["server"]["environment"]["MOORING_MEMORY_BUDGET"] == "5GiB"


def test_plain_up_starts_no_gpu_service_and_the_gpu_profile_reserves_one() -> None:
    services = compose()["services"]  # docker-compose 1 shows those of every profile
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "server-gpu": ["gpu"]
    }
    (device,) = services["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])


def test_the_database_and_its_password_are_one_for_both_sides() -> None:
    found = compose()
    server, postgres = found["services"]["server"], found["services"]["postgres"]
    user, host, database = re.fullmatch(
        r"postgresql://(\w+)@(\w+)/(\w+)", server["environment"]["MOORING_DATABASE_URL"]
    ).groups()  # type: ignore[union-attr]
    assert host in found["services"]
    environment = postgres["environment"]
    assert (user, database) == (environment["POSTGRES_USER"], environment["POSTGRES_DB"])
    secret = server["environment"]["MOORING_DATABASE_PASSWORD_FILE"]
    assert secret == environment["POSTGRES_PASSWORD_FILE"] == "/run/secrets/database_password"
    assert [each["source"] for each in server["secrets"]] == ["database_password", "metrics_key"]
    assert [each["source"] for each in postgres["secrets"]] == ["database_password"]
    assert server["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_prometheus_scrapes_a_name_that_the_servers_have() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    services = compose()["services"]
    for name in ("server", "server-gpu"):
        assert host in services[name]["networks"]["default"]["aliases"]
    assert int(port) == Settings().http_port
    assert scraped["scrape_configs"][0].get("metrics_path", "/metrics") == "/metrics"


def test_prometheus_has_the_key_that_the_server_wants_for_its_metrics() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    key_file = scraped["scrape_configs"][0]["authorization"]["credentials_file"]
    services = compose()["services"]
    assert key_file == services["server"]["environment"]["MOORING_METRICS_KEY_FILE"]
    for name in ("server", "server-gpu", "prometheus"):
        assert Path(key_file).name in [each["source"] for each in services[name]["secrets"]]


def test_workflows_may_read_and_no_more_and_run_actions_that_nobody_can_change() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
    assert workflows
    for workflow in workflows:
        found = yaml.safe_load(workflow.read_text())
        assert found["permissions"] == {"contents": "read"}, workflow
        used = re.findall(r"uses: *(\S+)", workflow.read_text())
        assert used
        for action in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), f"{action} is not pinned to a commit"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_package_but_torch_is_installed_by_its_hash(dockerfile: Path) -> None:
    [commands] = [each for each in arguments(dockerfile, "RUN") if "pip install" in each]
    installs = [each.split() for each in commands.split("&&") if "pip install" in each]
    [lock] = [words[words.index("-r") + 1] for words in installs if "--require-hashes" in words]
    assert all(
        "--require-hashes" in words or "--no-deps" in words or any("torch==" in word for word in words)
        for words in installs
    )
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    locked = {line.split("==")[0] for line in lines}
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    needed = {
        re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;]", each)[0]).lower() for each in PROJECT["dependencies"]
    }
    assert needed - {"torch"} <= locked
