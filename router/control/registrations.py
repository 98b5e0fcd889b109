"""Registrations as jobs: begun, followed, cancelled, resumed, and remembered over restarts of the server."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from model_registry.names import check_name
from model_registry.records import VersionRecord
from mooring.errors import ConflictError, MooringError, NotFoundError, ShuttingDownError
from mooring.policy import DeploymentPolicy, change_policy
from router.control.registrar import Registrar
from router.control.registration import Registration, RegistrationEnd, RegistrationFiles

__all__ = ["Registrations"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

KEPT_REGISTRATIONS = 256  # ended ones whose outcome can still be asked for
_CANCEL_S = 10.0  # longest wait for the step that runs to end


@dataclass(slots=True)
class _Work:
    """The work on one registration.

    Attributes:
        given_up: whether an operator has cancelled it.
        give_up: ends the step that runs, as far as it can be ended from without.
    """

    registration: Registration
    given_up: bool = False
    give_up: Callable[[], object] = lambda: None
    task: asyncio.Task[None] = field(init=False)


class Registrations:
    """The registrations of a server; lives on its event loop.

    A model is fetched, examined, copied, packed, and only then deployed. If it is cancelled on the way, what it has
    registered is taken back; what it has downloaded stays, and a later try goes on with it.

    Args:
        registrar: does the steps.
        folder: keeps the registrations over a restart.
        now: seconds of the Unix epoch.
    """

    def __init__(self, registrar: Registrar, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._registrar = registrar
        self._files = RegistrationFiles(folder)
        self._now = now
        self._registrations: dict[str, Registration] = {}
        self._running: dict[str, _Work] = {}
        self._stopping = False

    async def restore(self) -> None:
        """Finds the registrations of before; those that were running then were interrupted."""
        for registration in await asyncio.to_thread(self._files.load):
            self._registrations[registration.id] = registration
            if registration.state == "running":
                registration.end("interrupted", "the server ended")
                await self._save(registration)

    async def stop(self, grace_s: float) -> None:
        """Lets running registrations end within the grace period; then they are interrupted, and threads that still
        copy or download for them end at their next report of progress."""
        tasks = [work.task for work in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        self._stopping = True
        for work in list(self._running.values()):
            work.task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self, name: str, source: str, policy: Mapping[str, Any] | None) -> Registration:
        """Begins to register a model, and to deploy it under its name where there is a policy. Of a
        deployment that exists, the policy changes only what it names.

        Raises:
            InvalidRequestError: the name cannot be one, or the policy cannot be had.
            ConflictError: one of that name is being registered.
        """
        check_name(name)
        change_policy(DeploymentPolicy(), policy or {})  # now, not when gigabytes have been copied
        registration = Registration(secrets.token_hex(8), name, source, policy, self._now())
        self._begin(registration)
        await self._forget_old()
        return registration

    async def cancel(self, registration_id: str) -> Registration:
        """Ends a registration and takes back what it has registered; returns when that is done, or soon after if
        the step that runs cannot be ended at once. One whose model is being deployed already comes to its end.

        Raises:
            NotFoundError: there is none.
            ConflictError: it does not run.
        """
        registration = self.get(registration_id)
        work = self._running.get(registration_id)
        if work is None:
            raise ConflictError(f"registration {registration_id!r} does not run: it is {registration.state}")
        work.given_up = True
        work.give_up()
        await asyncio.wait([work.task], timeout=_CANCEL_S)
        return registration

    async def resume(self, registration_id: str) -> Registration:
        """Begins one again that failed, was cancelled or interrupted: it goes on with what was fetched.

        Raises:
            NotFoundError: there is none.
            ConflictError: it is running or done, or another of its name is running.
        """
        registration = self.get(registration_id)
        if registration.state in ("running", "done"):
            raise ConflictError(f"registration {registration_id!r} is {registration.state}")
        self._begin(registration)
        return registration

    def get(self, registration_id: str) -> Registration:
        """Raises ``NotFoundError``."""
        if registration_id not in self._registrations:
            raise NotFoundError(f"there is no registration {registration_id!r}")
        return self._registrations[registration_id]

    def list(self) -> list[Registration]:
        """All that are remembered, oldest first."""
        return list(self._registrations.values())

    def _begin(self, registration: Registration) -> None:
        name = registration.name
        if self._stopping:
            raise ShuttingDownError("the server is shutting down")
        if any(work.registration.name == name for work in self._running.values()):
            raise ConflictError(f"model {name!r} is being registered already", param="name")
        registration.begin()
        self._registrations[registration.id] = registration
        work = self._running[registration.id] = _Work(registration)
        work.task = asyncio.create_task(self._run(work), name=f"register-{name}")

    async def _run(self, work: _Work) -> None:
        registration = work.registration
        state, error = await self._outcome(work)
        if error is not None:
            what = (registration.name, registration.source, error)
            logger.warning("model %s from %s is not registered: %s", *what)
        registration.end(state, error)
        del self._running[registration.id]
        await self._save(registration)

    async def _outcome(self, work: _Work) -> tuple[RegistrationEnd, str | None]:
        """Does the work; returns how it ended, and why. A task's boundary: nobody else would hear of an error."""
        registration = work.registration
        try:
            await self._save(registration)
            await self._carry_out(work)
            return "done", None
        except ShuttingDownError as caught:
            return "interrupted", caught.message
        except MooringError as caught:
            error = caught.message
        except asyncio.CancelledError:  # only ``stop`` cancels
            return "interrupted", "the server shut down"
        except Exception as caught:
            error = f"internal error: {caught!r}"
            logger.exception("registering %s failed", registration.name)
        if not work.given_up:
            return "failed", error
        try:
            await self._take_back(registration)
        except asyncio.CancelledError:
            return "interrupted", "the server shut down"
        except (MooringError, OSError) as caught:
            return "cancelled", f"what it has registered is still there: {caught}"
        return "cancelled", None

    async def _carry_out(self, work: _Work) -> None:
        registration, registrar = work.registration, self._registrar
        version = await asyncio.to_thread(self._version_of, registration)
        if version is None:
            known = await asyncio.to_thread(registrar.version_numbers, registration.name)
            report = partial(self._report_from_thread, work)
            importing = registrar.importing(registration.name, registration.source, report)
            version = await _step(work, asyncio.wrap_future(importing), importing.cancel)
            registration.number, registration.is_new = version.number, version.number not in known
            await self._save(registration)
        if work.given_up:
            raise _cancelled()
        if registration.policy is not None:

            def report_packing(stage: str, done_bytes: int, total_bytes: int) -> None:
                _report(work, stage, done_bytes, total_bytes)

            packing = asyncio.create_task(registrar.packed_version(version, report_packing))
            try:
                await _step(work, packing, packing.cancel)
            finally:
                packing.cancel()  # if ``stop`` has cancelled the wait for it
                await asyncio.wait([packing])
            await registrar.deploy(registration.name, version, registration.policy)

    def _report_from_thread(self, work: _Work, stage: str, done_bytes: int, total_bytes: int) -> None:
        if self._stopping:  # on the thread that copies, which nothing else can stop
            raise ShuttingDownError("the server shut down")
        if _report(work, stage, done_bytes, total_bytes):
            self._keep(work.registration)

    def _version_of(self, registration: Registration) -> VersionRecord | None:
        """The version that an earlier try has registered, if it is still there."""
        if registration.number is None:
            return None
        try:
            return self._registrar.registry.get_version(registration.name, registration.number)
        except NotFoundError:
            registration.number = None
            registration.begin()
            return None

    async def _take_back(self, registration: Registration) -> None:
        """Removes what it has registered, unless somebody uses it by now."""
        if registration.number is not None and registration.is_new:
            try:
                await self._registrar.delete_version(registration.name, registration.number)
            except (ConflictError, NotFoundError) as error:
                logger.info("version %d of %s stays: %s", registration.number, registration.name, error)
        registration.number, registration.is_new = None, False

    async def _save(self, registration: Registration) -> None:
        await asyncio.to_thread(self._keep, registration)

    def _keep(self, registration: Registration) -> None:
        """Writes its file; that this cannot be is no reason to end it."""
        try:
            self._files.save(registration)
        except OSError as error:
            logger.warning("registration %s cannot be kept: %s", registration.id, error)

    async def _forget_old(self) -> None:
        ended = [each.id for each in self._registrations.values() if each.state != "running"]
        for registration_id in ended[: max(0, len(self._registrations) - KEPT_REGISTRATIONS)]:
            del self._registrations[registration_id]
            await asyncio.to_thread(self._files.remove, registration_id)


async def _step(work: _Work, step: asyncio.Future[T], give_up: Callable[[], object]) -> T:
    """The result of a step, which ``give_up`` ends. Raises what the step raises, and ``ConflictError`` if it ended
    without a result."""
    work.give_up = give_up
    if work.given_up:
        give_up()
    await asyncio.wait([step])
    work.give_up = lambda: None
    if step.cancelled():
        raise _cancelled()
    return step.result()


def _report(work: _Work, stage: str, done_bytes: int, total_bytes: int) -> bool:
    """Takes a report of progress; returns whether a stage begins. Raises ``ConflictError`` once the work is given up,
    which ends what reports."""
    if work.given_up:
        raise _cancelled()
    return work.registration.note(stage, done_bytes, total_bytes)


def _cancelled() -> MooringError:
    return ConflictError("it was cancelled")
