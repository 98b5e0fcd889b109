"""The KServe gRPC door around a scripted token source, for tests that need no server process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from mooring.errors import NotFoundError
from router.doors.grpc.limits import GrpcLimits
from router.doors.grpc_app import create_grpc_server
from router.doors.kserve.core import KServe
from router.doors.kserve.repository import IndexEntry
from router.intake import Intake
from router.request.served_model import ServedModel
from router.services import RouterServices
from support.router_doors import ScriptedSource, services

ADMIN_KEY = "the admin's"


@dataclass
class MemoryRepository:
    """A ``ModelRepository`` that remembers what was asked of it."""

    entries: list[IndexEntry]
    calls: list[tuple[str, str]] = field(default_factory=list)

    async def index(self) -> Sequence[IndexEntry]:
        return self.entries

    async def load(self, name: str) -> None:
        self._note("load", name)

    async def unload(self, name: str) -> None:
        self._note("unload", name)

    def _note(self, call: str, name: str) -> None:
        if not any(entry.name == name for entry in self.entries):
            raise NotFoundError(f"there is no deployment {name!r}")
        self.calls.append((call, name))


@dataclass
class KServeDoor:
    target: str
    services: RouterServices
    source: ScriptedSource
    repository: MemoryRepository
    kserve: KServe


@contextlib.asynccontextmanager
async def kserve_door(
    script: Callable[..., Any], models: list[ServedModel], limits: GrpcLimits | None = None, **options: Any
) -> AsyncIterator[KServeDoor]:
    """A running server; ``options`` are those of ``support.router_doors.services``."""
    source = ScriptedSource(script)
    shared = services(source, models, **options)
    repository = MemoryRepository([IndexEntry(model.name, str(model.version), "READY") for model in models])
    intake = Intake(shared)
    kserve = KServe(shared, intake, repository)
    server = create_grpc_server(shared, intake, kserve, ADMIN_KEY, limits)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield KServeDoor(f"127.0.0.1:{port}", shared, source, repository, kserve)
    finally:
        await server.stop(None)


def tensor(name: str, datatype: str, values: Any, shape: Sequence[int] | None = None) -> Any:
    """An input as clients of Triton make it."""
    kinds = {
        "BYTES": np.object_,
        "BOOL": np.bool_,
        "INT32": np.int32,
        "FP32": np.float32,
        "UINT64": np.uint64,
    }
    given = [value.encode() if isinstance(value, str) else value for value in values]
    array = np.array(given, dtype=kinds[datatype]).reshape(shape or [len(given)])
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text_inputs(text: str, *others: Any, max_tokens: int = 50, stream: bool = False) -> list[Any]:
    """The usual inputs, and others."""
    return [
        tensor("text_input", "BYTES", [text]),
        tensor("max_tokens", "INT32", [max_tokens]),
        tensor("stream", "BOOL", [stream]),
        *others,
    ]
