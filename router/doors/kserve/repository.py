"""Triton's model repository over our deployments: lists, loads and unloads them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mooring.errors import UnsupportedFieldError
from router.control.registrar import Registrar

__all__ = [
    "DeploymentRepository",
    "IndexEntry",
    "ModelRepository",
    "check_load_parameters",
    "check_repository_name",
    "check_unload_parameters",
]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One deployment.

    Attributes:
        state: ``READY`` or ``UNAVAILABLE``.
        reason: why it is unavailable; else empty.
    """

    name: str
    version: str
    state: str
    reason: str = ""


class ModelRepository(Protocol):
    """The KServe doors' view of the deployments, disabled ones included."""

    async def index(self) -> Sequence[IndexEntry]:
        """All deployments, by name."""
        ...

    async def load(self, name: str) -> None:
        """Enables a deployment and makes it resident; returns when it is.

        Raises:
            MooringError: there is no deployment of this name, or it cannot be made resident.
        """
        ...

    async def unload(self, name: str) -> None:
        """Disables a deployment: new requests are refused, running ones finish.

        Raises:
            NotFoundError: there is no deployment of this name.
        """
        ...


class DeploymentRepository:
    """The ``ModelRepository`` of a server; it changes deployments through the registrar, as the admin API
    does."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    async def index(self) -> Sequence[IndexEntry]:
        records = await asyncio.to_thread(self._registrar.registry.list_deployments)
        return [self._entry(record.name, str(record.variant.version.number)) for record in records]

    async def load(self, name: str) -> None:
        await self._registrar.update(name, {"enabled": True})
        await self._registrar.wake(name)

    async def unload(self, name: str) -> None:
        await self._registrar.update(name, {"enabled": False})

    def _entry(self, name: str, version: str) -> IndexEntry:
        reason = self._registrar.directory.reason(name)
        if reason is None and not self._registrar.directory.is_served(name):
            reason = "it is being prepared"
        return IndexEntry(name, version, "READY" if reason is None else "UNAVAILABLE", reason or "")


def check_repository_name(name: str) -> None:
    """Raises ``UnsupportedFieldError`` for any name: there is one repository, and it has none."""
    if name:
        raise UnsupportedFieldError("'repository_name' is not supported.", param="repository_name")


def check_load_parameters(parameters: Mapping[str, Any]) -> None:
    """Raises ``UnsupportedFieldError`` if a load has any parameter: a model's configuration and files are
    registered with the admin API."""
    for name in parameters:
        raise UnsupportedFieldError(
            f"Load parameter '{name}' is not supported: register models with 'mooring models register'.",
            param=name,
        )


def check_unload_parameters(parameters: Mapping[str, Any]) -> None:
    """Raises ``UnsupportedFieldError`` for any parameter of an unload but ``unload_dependents``, which has no
    effect since no model here depends on another."""
    for name in parameters:
        if name != "unload_dependents":
            raise UnsupportedFieldError(f"Unload parameter '{name}' is not supported.", param=name)
