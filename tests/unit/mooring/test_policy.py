"""A policy field that is declared once is there wherever an administrator sets or reads it."""

from __future__ import annotations

import dataclasses

import typer
from typer.main import get_command

from memory_manager.policy.plan_types import DeploymentView
from memory_manager.ports import DeploymentSpec
from model_registry.schema import DeploymentRow
from mooring.cli.deployments import app
from mooring.config import ModelEntry
from mooring.declared import declared
from mooring.policy import DeploymentPolicy
from router.doors.admin.bodies import DeploymentUpdate, Policy

FIELDS = declared(DeploymentPolicy)


def test_every_field_has_a_sentence() -> None:
    assert len(FIELDS) >= 10
    assert [name for name, each in FIELDS.items() if each.setting is None] == []


def test_rows_bodies_settings_and_options_have_every_field() -> None:
    columns = DeploymentRow.__table__.columns
    assert {name: columns[name].nullable for name in FIELDS} == {
        name: each.is_optional for name, each in FIELDS.items()
    }
    assert list(Policy.model_fields) == list(FIELDS)
    assert set(DeploymentUpdate.model_fields) == {"version", *FIELDS}
    assert set(ModelEntry.model_fields) == {"name", "source", *FIELDS}
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for command in ("create", "update"):
        options = {each.name for each in group.commands[command].params}
        assert {name.removesuffix("_bytes") for name in FIELDS} <= options


def test_bodies_and_settings_have_the_declared_defaults() -> None:
    defaults = dataclasses.asdict(DeploymentPolicy())
    assert Policy().model_dump() == defaults
    assert ModelEntry(name="m", source="/m").model_dump(exclude={"name", "source"}) == defaults
    assert set(DeploymentUpdate().model_dump().values()) == {None}


def test_the_manager_carries_the_policy_whole() -> None:
    for kind in (DeploymentSpec, DeploymentView):
        copied = kind.__annotations__.keys() & FIELDS.keys()
        assert copied <= {"kv_guarantee_bytes", "max_model_len"}, "worked out from the policy and the model"
