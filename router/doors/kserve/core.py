"""The KServe v2 protocol without a wire: the questions of its doors, gRPC and REST, and the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from mooring.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelUnavailableError,
)
from router.doors.kserve.answer import Answer, answers_of
from router.doors.kserve.inputs import InferRequest
from router.doors.kserve.metadata import ModelMetadata, model_config, model_metadata
from router.doors.kserve.repository import IndexEntry, ModelRepository
from router.doors.kserve.statistics import ModelStatistics, Statistics
from router.intake import Intake
from router.request.served_model import ServedModel
from router.services import RouterServices
from router.tenancy.tenant import SLO_CLASS_HEADER, Tenant
from router.text.generation import TextGeneration

__all__ = ["KServe"]

T = TypeVar("T")


class KServe:
    """Answers for all models. The doors authenticate: they ask for a tenant's key for everything but
    ``is_server_ready``, and for the admin key for ``load`` and ``unload``.

    Versions are those of the registry, from 1. The empty version means the one that is served; no other can
    be reached.

    Args:
        services: the models that are served, and the tenants.
        intake: starts generations.
        repository: the deployments.
        statistics: counts inferences; shared by the doors of a server.
    """

    def __init__(
        self,
        services: RouterServices,
        intake: Intake,
        repository: ModelRepository,
        statistics: Statistics | None = None,
    ) -> None:
        self._services = services
        self._intake = intake
        self._repository = repository
        self._statistics = statistics or Statistics()

    def is_server_ready(self) -> bool:
        """Whether a request that comes now can be served."""
        return self._services.is_ready()

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model of a name and version.

        Raises:
            InvalidRequestError: the version is no number.
            ModelNotFoundError: there is no model of that name, or another version is served.
            ModelUnavailableError: the model is unloaded, or failed.
            ModelNotReadyError: the model is still being made.
        """
        model = self._services.models.get(name)
        if version and not version.isdecimal():
            raise InvalidRequestError(
                f"Invalid version {version!r} of model '{name}': it must be a whole number above 0.",
                param="model_version",
            )
        if version and version != str(model.version):
            raise ModelNotFoundError(
                f"Model '{name}' has no version {version} here: version {model.version} is served.",
                param="model_version",
            )
        return model

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether the model takes requests. A sleeping model does; an unknown one does not."""
        try:
            return self.model(name, version).residency() != "failed"
        except (ModelNotFoundError, ModelNotReadyError, ModelUnavailableError):
            return False

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """A model's metadata; raises what ``model`` raises."""
        return model_metadata(self.model(name, version))

    def config(self, name: str, version: str = "") -> Mapping[str, Any]:
        """A model's configuration in the JSON form of Triton's ``ModelConfig``; raises what ``model``
        raises."""
        return model_config(self.model(name, version))

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """Statistics of one model, or of all that are served if ``name`` is empty; raises what ``model``
        raises."""
        models = [self.model(name, version)] if name else self._services.models.list()
        return self._statistics.of([(model.name, str(model.version)) for model in models])

    async def index(self, *, ready_only: bool = False) -> Sequence[IndexEntry]:
        """All deployments, or only those that take requests."""
        entries = await self._repository.index()
        return [entry for entry in entries if not ready_only or entry.state == "READY"]

    async def load(self, name: str) -> None:
        """Makes a model resident; raises what ``ModelRepository.load`` raises."""
        await self._repository.load(name)

    async def unload(self, name: str) -> None:
        """Unloads a model; raises what ``ModelRepository.unload`` raises."""
        await self._repository.unload(name)

    async def infer(
        self,
        model: ServedModel,
        request: InferRequest,
        *,
        request_id: str,
        tenant: Tenant,
        slo_class: str | None,
        whole: bool = False,
    ) -> AsyncGenerator[Answer, None]:
        """Yields the answers to a request. The caller must ``aclose()`` the iterator, which cancels what
        still runs.

        Args:
            model: the model that ``model()`` returned.
            slo_class: the SLO class that the call names, for a request that names none.
            whole: whether to give a single answer, whatever the request says.

        Raises:
            MooringError: the request is wrong, failed, or took longer than its own limit; nothing follows.
        """
        inference = self._statistics.begin(model.name, str(model.version))
        loop = asyncio.get_running_loop()
        deadline_s = None if request.timeout_s is None else loop.time() + request.timeout_s
        named = request.slo_class or slo_class
        try:
            tenant = tenant.in_class(named, param="slo_class" if request.slo_class else SLO_CLASS_HEADER)
            generation = await _by(deadline_s, self._start(model, request, request_id, tenant))
            inference.started()
            try:
                answers = answers_of(generation, request, whole=whole or not request.stream)
                async with aclosing(_each_by(deadline_s, answers)) as timely:
                    async for answer in timely:
                        yield answer
            finally:
                await generation.aclose()
        except Exception:  # any error counts as a failure and goes on to the door
            inference.failed()
            raise
        inference.succeeded()

    async def _start(
        self, model: ServedModel, request: InferRequest, request_id: str, tenant: Tenant
    ) -> TextGeneration:
        try:
            return await self._intake.start(
                model=model.name,
                prompt=request.prompt,
                options=request.options,
                request_id=request_id,
                tenant=tenant,
            )
        except InvalidRequestError as error:
            name = request.names.get(error.param or "")
            if name is None or name == error.param:
                raise
            # The error names an option, and the client knows the option by another name.
            raise type(error)(f"Input '{name}': {error.message}", param=name, code=error.code) from error


async def _by(deadline_s: float | None, work: Awaitable[T]) -> T:
    """The result of ``work``.

    Raises:
        DeadlineExceededError: it takes longer than until ``deadline_s``, on the loop's clock.
    """
    try:
        async with asyncio.timeout_at(deadline_s) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceededError(
            "The request took longer than its own 'timeout'.", param="timeout"
        ) from error


async def _each_by(
    deadline_s: float | None, answers: AsyncGenerator[Answer, None]
) -> AsyncGenerator[Answer, None]:
    """The answers, for as long as the deadline allows."""
    async with aclosing(answers):
        if deadline_s is None:
            async for answer in answers:
                yield answer
            return
        while (next_answer := await _by(deadline_s, anext(answers, None))) is not None:
            yield next_answer
