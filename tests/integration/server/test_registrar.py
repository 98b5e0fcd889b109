"""The registrar over a real registry, store, packer and manager, with things happening while it packs."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from support.registering import ended, opened
from support.small_checkpoint import write_checkpoint

from mooring.errors import (
    ArtifactError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnavailableError,
    ShuttingDownError,
)
from mooring.policy import DeploymentPolicy

pytestmark = pytest.mark.integration


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


async def test_a_deployment_deleted_while_it_is_packed_stays_deleted(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        starting = asyncio.create_task(house.register("m", source))
        await house.packer.packed.wait()
        await house.registrar.delete("m")
        house.packer.go.set()
        await starting
        assert house.managed == []
        with pytest.raises(ModelNotFoundError):
            house.registrar.directory.get("m")
        await house.registrar.delete_model("m")
        assert house.stored() == []


async def test_a_model_deleted_while_it_is_packed_leaves_no_files(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = await house.registrations.start("m", str(source), {})
        await house.packer.packed.wait()
        await house.registrar.delete_model("m")
        house.packer.go.set()
        await ended(registration)
        assert house.managed == []
        assert house.stored() == []


async def test_of_two_changes_at_once_the_registry_has_the_last_word(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        house.packer.go.clear()
        slow = asyncio.create_task(house.registrar.update("m", {"max_model_len": 100}))
        house.packer.packed.clear()
        await house.packer.packed.wait()
        fast = asyncio.create_task(house.registrar.update("m", {"max_model_len": 50}))
        house.packer.packed.clear()
        await house.packer.packed.wait()
        house.packer.go.set()
        await asyncio.gather(slow, fast)
        assert house.registrar.directory.get("m").max_model_len == 50


async def test_after_a_stop_nothing_more_is_copied_or_registered(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.registrar.stop()
        with pytest.raises(ShuttingDownError):
            await house.register("m", source)
        assert house.registrar.registry.list_models() == []
        assert house.stored() == []


async def test_a_deployment_whose_files_are_gone_is_withheld_and_can_be_deleted(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as house:
        await house.register("broken", source)
        await house.register("whole", write_checkpoint(tmp_path / "other", seed=1))
        digest = house.registrar.registry.get_version("broken").digest
    shutil.rmtree(tmp_path / "store" / "artifacts" / digest)
    async with opened(tmp_path) as house:
        await house.registrar.restore()
        assert house.managed == ["whole"]
        with pytest.raises(ModelUnavailableError, match=digest):
            house.registrar.directory.get("broken")
        for ask in (house.registrar.sleep, house.registrar.wake):
            with pytest.raises(ModelUnavailableError, match=digest):
                await ask("broken")
        await house.registrar.update("broken", {"priority": 1})
        assert house.registrar.directory.reason("broken")
        await house.register("broken", source)
        assert house.managed == ["whole", "broken"]
        shutil.rmtree(tmp_path / "store" / "artifacts" / digest)
        await house.registrar.update("broken", {"priority": 2})
        assert house.managed == ["whole"]
        await house.registrar.delete("broken")
        with pytest.raises(ModelNotFoundError):
            house.registrar.directory.get("broken")


async def test_each_deployment_keeps_its_engine(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
    async with opened(tmp_path, engine="torch") as house:
        await house.registrar.restore()
        await house.registrar.create("own", "m", None, DeploymentPolicy())
        await house.registrar.create("given", "m", None, DeploymentPolicy(), "null")
        found = {name: house.registrar.directory.get(name).engine for name in ("m", "own", "given")}
        assert found == {"m": "null", "own": "torch", "given": "null"}
        with pytest.raises(InvalidRequestError, match="engine"):
            await house.registrar.create("odd", "m", None, DeploymentPolicy(), "abacus")


async def test_a_start_with_the_same_model_leaves_it_disabled(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        await house.registrar.update("m", {"enabled": False})
        await house.register("m", source)
        with pytest.raises(ModelUnavailableError, match="disabled"):
            house.registrar.directory.get("m")


async def test_a_source_that_is_gone_is_no_reason_not_to_serve_what_it_gave(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        await asyncio.to_thread(source.rename, tmp_path / "moved")
        await house.registrar.ensure("m", str(source), {"priority": 5})
        assert house.managed == ["m"]
        assert house.registrar.registry.get_deployment("m").policy.priority == 5
        for name, missing in (("m", "elsewhere"), ("new", "source")):
            with pytest.raises(ArtifactError, match="there is nothing at"):
                await house.register(name, tmp_path / missing)


async def test_auto_gives_16_bit_checkpoints_the_machines_precision_and_leaves_others_their_own(
    tmp_path: Path, source: Path
) -> None:
    half = write_checkpoint(tmp_path / "half", dtype=np.float16)
    for machines in ("bf16", "fp32"):  # the folder is taken to another machine
        async with opened(tmp_path) as house:
            house.registrar.precision_for_16_bit = machines
            await house.registrar.restore()
            await house.register("half", half)
            await house.register("full", source)
            await house.registrar.create(f"made-for-{machines}", "half", None, DeploymentPolicy())
            deployments = house.registrar.registry.list_deployments()
            found = {each.name: each.variant.precision for each in deployments}
            assert (found["half"], found["full"]) == (machines, "fp32")
            assert found[f"made-for-{machines}"] == machines
    assert found["made-for-bf16"] == "bf16"  # nobody asked for another


async def test_a_source_that_never_changes_is_read_once(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.registrar.ensure("m", str(source), {}, never_changes=True)
    (source / "config.json").unlink()
    async with opened(tmp_path) as house:
        await house.registrar.restore()
        await house.registrar.ensure("m", str(source), {"priority": 3}, never_changes=True)
        assert house.registrar.registry.get_deployment("m").policy.priority == 3
        with patch.object(house.registrar.importer, "register") as read:
            await house.registrar.ensure("m", str(source), {}, never_changes=True)
        assert not read.called
