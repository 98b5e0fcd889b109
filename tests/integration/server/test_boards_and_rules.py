"""Grafana boards and Prometheus rules: they parse, fire when they are to, and name what a server exports."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.paths import ROOT
from support.programs import need_program
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

from router.feed import alerts

pytestmark = pytest.mark.integration

BOARDS = sorted((ROOT / "deploy" / "grafana" / "boards").glob("*.json"))
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
METRIC = re.compile(r"\b(?:vllm:|mooring_)\w+")
MATCHER = re.compile(r"(\w+)(?:=~|!~|!=|=)\"")
GROUPING = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return found


def expressions(board: Path) -> list[str]:
    """Those of all panels."""
    return [
        target["expr"] for panel in json.loads(board.read_text())["panels"] for target in panel["targets"]
    ]


def plain(expression: str) -> str:
    """The expression with a value in place of each variable of Grafana's."""
    return re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "1m"))


def promtool(*arguments: str | Path) -> None:
    program = need_program("promtool", "prometheus")
    ended = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """The labels of every series that a server exports after a little of everything, by its name."""
    root = tmp_path_factory.mktemp("boards")
    checkpoint = write_checkpoint(root / "m")
    flags = ["--engine", "null", "--memory-budget", "16MiB"]
    with RunningServer(root / "data", {"m": checkpoint}, flags, NULL_ENVIRONMENT) as server:
        headers = {"authorization": f"Bearer {server.new_key('acme')}"}
        made = {"name": "gold", "ttft_target_s": 60, "tpot_target_s": 60, "goal": 0.9}
        server.admin("POST", "/slo-classes", made).raise_for_status()
        server.admin("PATCH", "/tenants/acme", {"slo_class": "gold"}).raise_for_status()
        for act in ("wake", "sleep", "wake"):
            server.admin("POST", f"/deployments/m/{act}").raise_for_status()
        for _ in range(3):
            body = {"model": "m", "prompt": "hello", "max_tokens": 4}
            server.client.post(
                f"{server.http_url}/v1/completions", json=body, headers=headers
            ).raise_for_status()
        assert server.client.get(f"{server.http_url}/admin/v1/status").status_code == 401
        found: dict[str, set[str]] = {}
        while "mooring_device_utilization_ratio" not in found:  # from the second sample on
            page = server.client.get(f"{server.http_url}/metrics").text
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
        yield found


def test_there_is_a_board_for_the_fleet_for_models_and_for_tenants() -> None:
    assert [board.stem for board in BOARDS] == ["fleet", "model", "tenants"]


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_a_board_is_one_that_grafana_finds_its_data_source_for(board: Path) -> None:
    shown = json.loads(board.read_text())
    [source] = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert shown["uid"] == f"mooring-{board.stem}"
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])
    places = [panel["gridPos"] for panel in shown["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    for panel in shown["panels"]:
        assert panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == source["uid"]
    variables = {each["name"] for each in shown["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)(\w+)", "".join(expressions(board))))
    assert used == variables, "a variable that does nothing, or one that is not there"


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_every_expression_of_a_board_parses(board: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    recorded = [
        {"record": f"board:{number}", "expr": plain(expression)}
        for number, expression in enumerate(expressions(board))
    ]
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": recorded}]}))
    promtool("check", "rules", file)


@pytest.mark.parametrize("page", [*BOARDS, RULES], ids=lambda path: path.stem)
def test_what_a_board_or_a_rule_names_is_exported(page: Path, exported: dict[str, set[str]]) -> None:
    named = [rule["expr"] for rule in rules()] if page == RULES else expressions(page)
    if page != RULES:
        named += [each["definition"] for each in json.loads(page.read_text())["templating"]["list"]]
    for expression in named:
        metrics = METRIC.findall(expression)
        labels: set[str] = set()
        for metric in metrics:
            assert metric in exported, f"{metric} in {expression}"
            labels |= exported[metric]
        wanted = set(MATCHER.findall(expression))
        for group in GROUPING.findall(expression):
            wanted |= {label.strip() for label in group.split(",")}
        if metrics:
            assert wanted <= labels, expression


def test_the_rules_fire_when_they_are_to() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", RULES.with_name("alerts_test.yml"))


def test_every_rule_is_tried() -> None:
    tried = yaml.safe_load(RULES.with_name("alerts_test.yml").read_text())["tests"]
    fired = {each["alertname"] for case in tried for each in case["alert_rule_test"] if "exp_alerts" in each}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def test_the_rules_go_by_the_same_figures_as_the_feed() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in rules() if "alert" in rule}
    assert f"{alerts.FAST_BURN:g} * mooring:slo_allowed:ratio" in by_name["MooringErrorBudgetBurnsFast"]
    assert f"{alerts.SLOW_BURN:g} * mooring:slo_allowed:ratio" in by_name["MooringErrorBudgetBurns"]
    assert f"[{alerts.RESTART_WINDOW_S / 60:g}m]" in by_name["MooringWorkerRestarting"]
    for name in ("MooringErrorBudgetBurnsFast", "MooringErrorBudgetBurns", "MooringAttainmentBelowGoal"):
        assert f"increase1h >= {alerts.MIN_REQUESTS}" in by_name[name]


def test_the_compose_file_brings_boards_and_rules_to_where_they_are_looked_for() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = dict(
        each.split(":")[:2] for name in ("grafana", "prometheus") for each in services[name]["volumes"]
    )
    [provider] = yaml.safe_load((PROVISIONING / "dashboards" / "boards.yml").read_text())["providers"]
    assert mounted["./deploy/grafana/boards"] == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    [file] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["rule_files"]
    assert mounted[f"./deploy/prometheus/{file}"] == f"/etc/prometheus/{file}"
