"""Every setting is declared in one place: default, bounds and sentence."""

from __future__ import annotations

import ast
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel
from support.paths import ROOT

from mooring.config import Settings, load_settings, section_of
from mooring.declared import Bounds, Setting, check_bounds, declared, settings_of
from mooring.errors import ConfigurationError
from mooring.policy import DeploymentPolicy
from router.request.sampling import PLAIN_OPTIONS

PACKAGES = ("engines", "memory_manager", "model_registry", "mooring", "ops", "router")
UNSET = ("None", "0", "0.0", "False", "()", "''")
NO_DEFAULTS = ("_setting_of(", "mapped_column(")  # asks the part; a column
OTHER_MEANINGS = {
    ("device", "TorchEngineConfig"),  # the device of one worker
    ("tpot_target_s", "SequenceRequest"),  # none is promised
}


@dataclass(frozen=True)
class Pump:
    speed: Annotated[float, Bounds(gt=0, le=2), Setting("How fast it goes.")] = 1.0
    mode: Annotated[Literal["in", "out"], Setting("Where to.", name="direction")] = "in"
    num_valves: Annotated[int | None, Bounds(ge=1)] = None


def parts() -> dict[str, type]:
    """The sections of the settings, each with the configuration that declares it."""
    annotations = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: part
        for name, part in annotations.items()
        if isinstance(part, type) and dataclasses.is_dataclass(part)
    }


def defaults_by_field() -> dict[str, list[str]]:
    """For each name of a field, the classes that give it a default, one that says more than "unset"."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    for name in _own_defaults(node):
                        found[name].append(node.name)
    return found


def _own_defaults(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name) or line.value is None:
            continue
        value = line.value
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
            value = value.args[0] if value.args else ast.Constant(None)
        text = ast.unparse(value)
        if text not in UNSET and not text.startswith(NO_DEFAULTS):
            yield line.target.id


def test_no_default_of_a_setting_is_declared_twice() -> None:
    by_field = defaults_by_field()
    names = set(Settings.model_fields) - set(parts())
    names |= {name for part in parts().values() for name, each in declared(part).items() if each.setting}
    names |= set(declared(DeploymentPolicy)) | set(PLAIN_OPTIONS)
    assert len(names) > 45
    twice = {
        name: classes
        for name in sorted(names)
        if len(classes := [each for each in by_field[name] if (name, each) not in OTHER_MEANINGS]) > 1
    }
    assert twice == {}


def test_every_section_is_the_configuration_of_a_part() -> None:
    assert set(parts()) == {"limits", "planner", "others", "torch", "null", "tensorrt_llm"}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        assert not (isinstance(kind, type) and issubclass(kind, BaseModel)), f"{name} has defaults of its own"
    for name, part in parts().items():
        assert getattr(load_settings(), name) == part()
        outside = {each.setting.name or key for key, each in declared(part).items() if each.setting}
        assert set(section_of(part).model_fields) == outside


def test_a_setting_of_a_part_reaches_it_checked() -> None:
    settings = load_settings({"others": {"margin": "1MiB"}, "torch": {"num_threads": 3}})
    assert settings.others.margin_bytes == 1 << 20
    assert settings.torch.num_threads == 3
    for flags, message in (
        ({"others": {"margin_bytes": 1}}, "others.margin_bytes"),
        ({"planner": {"patience_s": 1}}, "unknown setting: planner.patience_s"),
        ({"planner": {"max_drain_s": -1}}, "setting planner.max_drain_s: .* greater than or equal to 0"),
        (
            {"torch": {"max_tokens_per_step": 2}},
            "setting torch: .*max_tokens_per_step .* at least max_running",
        ),
        ({"torch": {"cpu_wake": "fly"}}, "setting torch.cpu_wake: .*'remap' or 'copy'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_settings(flags)


def test_declarations_are_read_with_bounds_and_sentences() -> None:
    speed, mode, valves = declared(Pump).values()
    assert (speed.kind, speed.default, speed.setting) == (float, 1.0, Setting("How fast it goes."))
    assert not speed.is_optional
    assert str(speed.bounds) == "more than 0 and at most 2"
    assert (mode.setting and mode.setting.name, mode.bounds) == ("direction", None)
    assert valves.is_optional
    assert valves.setting is None
    assert settings_of(Pump()) == {"speed": 1.0, "mode": "in"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 0.0}, "speed is 0.0 and must be more than 0 and at most 2"),
        ({"speed": 2.5}, "speed"),
        ({"mode": "up"}, "mode is 'up' and must be in or out"),
        ({"num_valves": 0}, "num_valves is 0 and must be at least 1"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(values: dict[str, object], message: str) -> None:
    check_bounds(Pump(speed=2.0))
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_bounds(dataclasses.replace(Pump(), **values))  # type: ignore[arg-type]
    assert caught.value.param in values
