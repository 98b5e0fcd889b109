"""Registrations over a real registry, store and packer: followed, cancelled, resumed, interrupted."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
from support.registering import ended, opened
from support.small_checkpoint import write_checkpoint

from model_registry.importing.importer import Importer
from model_registry.progress import Progress
from model_registry.records import VersionRecord
from model_registry.store import ArtifactStore, StoredArtifact
from mooring.errors import (
    ArtifactError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    RegistryUnavailableError,
)
from router.control.registration import Registration

pytestmark = pytest.mark.integration


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


def states(registration: Registration) -> list[tuple[str, str]]:
    return [(each.name, each.state) for each in registration.stages]


async def test_stages_are_told_before_they_come(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = await house.registrations.start("m", str(source), {})
        assert states(registration) == [
            (name, "waiting") for name in ("check", "copy", "check the copy", "pack")
        ]
        await house.packer.packed.wait()
        assert states(registration)[-2:] == [("check the copy", "done"), ("pack", "running")]
        copy = registration.stages[1]
        assert copy.done_bytes == copy.total_bytes > 0
        house.packer.go.set()
        await ended(registration)
        assert {state for _, state in states(registration)} == {"done"}
        assert registration.number == 1


async def test_one_that_is_cancelled_while_it_packs_leaves_nothing(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = await house.registrations.start("m", str(source), {})
        await house.packer.packed.wait()
        assert house.registrar.registry.list_models(), "it is registered by now"
        assert await house.registrations.cancel(registration.id) is registration
        assert (registration.state, registration.error) == ("cancelled", None)
        assert states(registration)[-1] == ("pack", "cancelled")
        assert house.registrar.registry.list_models() == []
        assert house.registrar.registry.list_deployments() == []
        assert house.stored() == []
        with pytest.raises(ConflictError, match="cancelled"):
            await house.registrations.cancel(registration.id)


async def test_one_that_cannot_be_taken_back_says_so_and_blocks_nothing(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = await house.registrations.start("m", str(source), {})
        await house.packer.packed.wait()
        away = RegistryUnavailableError("the registry's database does not answer: try again")
        with patch.object(Importer, "delete_model", side_effect=away):
            await house.registrations.cancel(registration.id)
        assert registration.state == "cancelled"
        assert "is still there: the registry" in (registration.error or "")
        house.packer.go.set()
        await house.registrations.resume(registration.id)
        await ended(registration)
        assert (registration.state, house.managed) == ("done", ["m"])


async def test_one_that_is_cancelled_while_it_copies_leaves_nothing(tmp_path: Path, source: Path) -> None:
    copying, copies = threading.Event(), ArtifactStore.import_folder

    def slow(
        store: ArtifactStore, path: Path, names: object, check: object, report: Progress
    ) -> StoredArtifact:
        def report_slowly(stage: str, done_bytes: int, total_bytes: int) -> None:
            copying.set()
            while True:  # until it raises
                report(stage, done_bytes, total_bytes)

        return copies(store, path, names, check, report_slowly)  # type: ignore[arg-type]

    async with opened(tmp_path) as house:
        with patch.object(ArtifactStore, "import_folder", slow):
            registration = await house.registrations.start("m", str(source), {})
            await asyncio.to_thread(copying.wait)
            await house.registrations.cancel(registration.id)
        assert registration.state == "cancelled"
        assert states(registration)[:2] == [("check", "done"), ("copy", "cancelled")]
        assert house.registrar.registry.list_models() == []
        assert house.stored() == []
        await house.registrations.resume(registration.id)
        await ended(registration)
        assert (registration.state, house.managed) == ("done", ["m"])


async def test_cancelling_a_newer_version_leaves_the_one_that_is_served(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        house.packer.go.clear()
        house.packer.packed.clear()
        registration = await house.registrations.start("m", str(write_checkpoint(source, seed=2)), {})
        await house.packer.packed.wait()
        assert house.registrar.version_numbers("m") == {1, 2}
        await house.registrations.cancel(registration.id)
        assert house.registrar.version_numbers("m") == {1}
        deployment = house.registrar.registry.get_deployment("m")
        assert deployment.variant.version.number == 1
        assert len(house.stored()) == 2, "an artifact, and the one packed from it"


async def test_cancelling_takes_no_version_back_that_was_there_before(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await ended(await house.registrations.start("m", str(source), None))
        house.packer.go.clear()
        registration = await house.registrations.start("m", str(source), {})
        await house.packer.packed.wait()
        await house.registrations.cancel(registration.id)
        assert registration.state == "cancelled"
        assert house.registrar.version_numbers("m") == {1}


async def test_one_that_waits_for_a_thread_is_cancelled_at_once(tmp_path: Path, source: Path) -> None:
    let_go, begun = threading.Event(), threading.Semaphore(0)
    async with opened(tmp_path) as house:

        def slow(model: str, source: str, progress: Progress | None = None) -> VersionRecord:
            begun.release()
            let_go.wait()
            raise ArtifactError("it took too long")

        with patch.object(house.registrar.importer, "register", slow):
            try:
                running = [await house.registrations.start(f"m{n}", str(source), None) for n in range(32)]
                for _ in running:
                    await asyncio.to_thread(begun.acquire)
                waiting = await house.registrations.start("waits", str(source), None)
                await house.registrations.cancel(waiting.id)
                assert waiting.state == "cancelled"
            finally:
                let_go.set()
            for registration in running:
                await ended(registration)


async def test_a_restart_interrupts_what_ran_and_it_can_be_resumed(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        before = await house.registrations.start("m", str(source), {"priority": 3})
        await house.packer.packed.wait()
        await house.registrations.stop(0)
        assert (before.state, before.error) == ("interrupted", "the server shut down")
    (source / "config.json").unlink()  # what was fetched is not fetched again
    async with opened(tmp_path) as house:
        await house.registrar.restore()
        assert house.managed == []
        (found,) = house.registrations.list()
        assert found == before
        await house.registrations.resume(found.id)
        await ended(found)
        assert (found.state, found.error, states(found)) == ("done", None, [])
        assert house.managed == ["m"]
        assert house.registrar.registry.get_deployment("m").policy.priority == 3
        with pytest.raises(ConflictError, match="done"):
            await house.registrations.resume(found.id)


async def test_a_server_that_was_killed_finds_what_ran_interrupted(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        running = await house.registrations.start("m", str(source), {})
        await house.packer.packed.wait()
        files = {path: path.read_bytes() for path in (tmp_path / "registrations").iterdir()}
    for path, content in files.items():  # as they were then
        path.write_bytes(content)
    (tmp_path / "registrations" / "torn.json").write_bytes(next(iter(files.values()))[:40])
    async with opened(tmp_path) as house:
        (found,) = house.registrations.list()
        assert (found.id, found.state, found.error) == (running.id, "interrupted", "the server ended")
        assert states(found)[0] == ("check", "done")
        await house.registrations.resume(found.id)
        await house.registrations.cancel(found.id)
        assert found.state in ("cancelled", "done")


async def test_one_that_failed_is_resumed_once_its_source_is_mended(tmp_path: Path, source: Path) -> None:
    config = (source / "config.json").read_bytes()
    (source / "config.json").unlink()
    async with opened(tmp_path) as house:
        registration = await house.registrations.start("m", str(source), {})
        await ended(registration)
        assert registration.state == "failed"
        assert states(registration)[0] == ("check", "failed")
        (source / "config.json").write_bytes(config)
        await house.registrations.resume(registration.id)
        await ended(registration)
        assert (registration.state, registration.error, house.managed) == ("done", None, ["m"])
        for ask in (house.registrations.cancel, house.registrations.resume):
            with pytest.raises(NotFoundError):
                await ask("nothing")


async def test_one_registration_of_a_name_at_a_time(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        first = await house.registrations.start("m", str(source), {})
        with pytest.raises(ConflictError, match="being registered"):
            await house.registrations.start("m", str(source), {})
        assert house.registrations.get(first.id) is first
        house.packer.go.set()
        await ended(first)
        assert first.stage == "pack"
        again = await house.registrations.start("m", str(source), None)
        assert again.id != first.id


async def test_a_policy_that_cannot_be_is_refused_before_anything_is_copied(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as house:
        with pytest.raises(InvalidRequestError) as caught:
            await house.registrations.start("m", str(source), {"idle_timeout_s": float("inf")})
        assert caught.value.param == "idle_timeout_s"
        assert (house.registrations.list(), house.stored()) == ([], [])


async def test_many_slow_registrations_leave_threads_for_others(tmp_path: Path, source: Path) -> None:
    let_go = threading.Event()
    async with opened(tmp_path) as house:

        def slow(model: str, source: str, progress: Progress | None = None) -> VersionRecord:
            let_go.wait()
            raise ArtifactError("it took too long")

        with patch.object(house.registrar.importer, "register", slow):
            running = [
                await house.registrations.start(f"m{number}", str(source), None) for number in range(40)
            ]
            await asyncio.sleep(0)
            try:
                await asyncio.wait_for(asyncio.to_thread(house.registrar.registry.list_models), 20)
            finally:
                let_go.set()
            for registration in running:
                await ended(registration)
        assert {each.error for each in running} == {"it took too long"}
