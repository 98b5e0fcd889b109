"""Settings: precedence, unknown keys, sizes, and the page generated from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from memory_manager.config import DeviceBudget
from mooring.config import load_settings, setting_names, variable_name
from mooring.errors import ConfigurationError
from mooring.reference import configuration_page
from mooring.server.admin_key import ensure_admin_key, read_admin_key
from mooring.server.devices import default_host_cache_bytes, device_budgets
from mooring.server.worker_specs import worker_specs
from mooring.units import MIB, format_bytes, parse_bytes


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in setting_names():
        monkeypatch.delenv(variable_name(name), raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


def test_flags_override_environment_overrides_file_overrides_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mooring.toml"
    file.write_text(
        "http_port = 9000\ngrpc_port = 9001\nmemory_budget = '1GiB'\n[planner]\nmax_drain_s = 9\n"
        "starve_after_s = 8\n[[models]]\nname = 'a'\nsource = '/b'\nkv_guarantee_bytes = '16MiB'\n"
    )
    monkeypatch.setenv("MOORING_GRPC_PORT", "7001")
    monkeypatch.setenv("MOORING_HTTP_PORT", "7000")
    monkeypatch.setenv("MOORING_PLANNER__STARVE_AFTER_S", "3")
    settings = load_settings({"http_port": 6000, "log_level": None}, file)
    assert settings.http_port == 6000
    assert settings.grpc_port == 7001
    assert settings.memory_budget == 1024 * MIB
    assert settings.planner.max_drain_s == 9
    assert settings.planner.starve_after_s == 3
    assert settings.log_level == "info"
    assert settings.models[0].kv_guarantee_bytes == 16 * MIB


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("htp_port = 1", ["htp_port", "did you mean http_port"]),
        ("[planner]\nmax_drain = 1", ["planner.max_drain", "planner.max_drain_s"]),
        ("http_port = 'x'", ["http_port"]),
        ("memory_budget = 'lots'", ["memory_budget", "512MiB"]),
        ("memory_budget = 1.5", ["memory_budget", "512MiB"]),
        ("memory_budget = true", ["memory_budget", "512MiB"]),
        ("memory_budget = ['1GiB']", ["memory_budget", "512MiB"]),
        ("[[models]]\nname = 'a'", ["models.0.source"]),
        ("a b", ["cannot be read"]),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_setting(tmp_path: Path, text: str, names: list[str]) -> None:
    file = tmp_path / "mooring.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config_file=file)
    for name in names:
        assert name in caught.value.message


def test_an_unknown_variable_is_an_error_that_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORING_HTTP_PROT", "1")
    with pytest.raises(ConfigurationError, match=r"MOORING_HTTP_PROT.*MOORING_HTTP_PORT"):
        load_settings()


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration file"):
        load_settings(config_file=tmp_path / "absent.toml")


def test_the_committed_configuration_page_is_the_generated_one() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text() == configuration_page(), "run `make docs`"


def test_the_admin_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "data" / "admin.key"
    key = ensure_admin_key(path)
    assert len(key) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_admin_key(path) == key == read_admin_key(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["admin.key"]
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_admin_key(path)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512MiB", 512 * MIB), ("1.5 GB", 1_500_000_000), ("7", 7), (9, 9), ("2k", 2000), ("1KiB", 1024)],
)
def test_sizes_are_read_as_people_write_them(text: str | int, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "12 parsecs", "-1", -1])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


def test_sizes_are_written_in_binary_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 4 * MIB, 257 * MIB + 7, 1536)] == [
        "0 B",
        "1023 B",
        "4 MiB",
        "257 MiB",
        "1.5 KiB",
    ]


def test_several_devices_from_flags_file_and_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mooring.toml"
    file.write_text('[[devices]]\nname = "cuda:1"\nreserve_bytes = "2GiB"\n')
    (device,) = load_settings({}, file).devices
    assert (device.name, device.memory_budget, device.reserve_bytes) == ("cuda:1", None, 2048 * MIB)
    given = '[{"name": "cpu:0", "memory_budget": "64MiB"}, {"name": "cpu:1", "memory_budget": "32MiB"}]'
    monkeypatch.setenv("MOORING_DEVICES", given)
    settings = load_settings()
    assert [(each.name, each.memory_budget) for each in settings.devices] == [
        ("cpu:0", 64 * MIB),
        ("cpu:1", 32 * MIB),
    ]
    budgets = device_budgets(settings)
    assert budgets == [DeviceBudget("cpu:0", 64 * MIB), DeviceBudget("cpu:1", 32 * MIB)]
    specs = worker_specs(settings, budgets, {}, settings.engine)
    assert [(each.worker_id, each.device, each.memory_budget_bytes) for each in specs] == [
        ("torch-0", "cpu:0", 64 * MIB),
        ("torch-1", "cpu:1", 32 * MIB),
    ]
    assert specs[0].config["num_threads"] == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize(
    ("devices", "total_gib", "expected_gib"),
    [
        ({"cpu": 8}, 16, 4),  # a quarter, as what the device leaves is to be shared with others
        ({"cpu": 1}, 16, 4),
        ({"cuda:0": 24}, 256, 64),
        ({"cuda:0": 80}, 512, 160),  # all that it holds, and one model as large as it
        ({"cuda:0": 80, "cuda:1": 40}, 640, 200),
        ({"cuda:0": 140}, 256, 128),  # half of the machine
        ({"cuda:0": 140, "cpu": 56}, 256, 100),
    ],
)
def test_host_memory_for_copies_follows_the_devices(
    devices: dict[str, int], total_gib: int, expected_gib: int
) -> None:
    budgets = [DeviceBudget(name, gib << 30) for name, gib in devices.items()]
    assert default_host_cache_bytes(budgets, total_gib << 30) == expected_gib << 30


def test_a_step_may_take_longer_on_a_cpu_unless_the_operator_says_how_long() -> None:
    budgets = [DeviceBudget("cpu", 64 * MIB), DeviceBudget("cuda:0", 64 * MIB)]
    unset, given = (
        worker_specs(load_settings(flags), budgets, {}, "torch") for flags in ({}, {"max_stall_s": 5})
    )
    assert [spec.max_stall_s for spec in unset] == [600, 60]
    assert [spec.max_stall_s for spec in given] == [5, 5]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"devices": [{"name": "cpu:0", "memory_budget": "1GiB"}] * 2}, "named twice"),
        ({"devices": [{"name": "cpu:0"}, {"name": "cpu:1", "memory_budget": "1GiB"}]}, "memory budget"),
        ({"devices": [{"name": "gpu"}]}, "devices.0.name"),
        ({"devices": [{"name": "cuda:0"}], "memory_budget": "1GiB"}, "memory_budget is for one device"),
        ({"devices": [{"name": "cuda:0"}], "device": "cpu"}, "device is for one device"),
    ],
)
def test_devices_that_contradict_each_other_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings(flags)
