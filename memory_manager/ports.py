"""The world outside the memory manager, as it knows it: value types, and the worker as a Protocol.

The engine client (``engines.supervise.client.WorkerClient``) satisfies ``WorkerPort``; the memory manager imports
nothing of the engines.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from memory_manager.stats import WorkerStats
from mooring.policy import DeploymentPolicy

__all__ = [
    "ArtifactRef",
    "Capabilities",
    "DeploymentSpec",
    "LeaseStatus",
    "WarmPlace",
    "WorkerPort",
]


class LeaseStatus(enum.Enum):
    """A worker's answer to an absolute, revisioned lease."""

    APPLIED = "applied"  # committed KV is within the lease
    DEFERRED = "deferred"  # accepted; more is still in use, ask again with the same revision
    STALE = "stale"  # an older revision than the one in force; nothing changed
    CONFLICT = "conflict"  # the revision in force with other bytes; nothing changed


class WarmPlace(enum.Enum):
    """The place in memory where the weights of a replica wait that is off its device."""

    HOST_CACHE = "host_cache"  # in the server's host cache, kept as long as a worker knows the replica
    WORKER = "worker"  # in the worker, as long as the replica sleeps there; the host cache is only on the way
    NOWHERE = "nowhere"  # in storage alone


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Abilities of a worker: those of its engine, and what it runs on. The planner reads them.

    Attributes:
        engine: name of a row of ``engines.kinds.KINDS``.
        device: ``"cpu"`` or ``"cuda:0"``.
        sleep: a replica can give up its device memory and wake again; without it a replica is unloaded.
        elastic_kv: the KV lease may change while replicas are there, which share it; without it each replica has KV
            of its own from its load on: its guarantee, and at least one sequence of full length.
        warm: where weights wait off the device.
        adapters: it can load adapters beside a base model.
        pid: its process.
        maps_host_copy: the weights of a replica that came by way of a host copy are that copy's own pages, so that
            the copy cannot go while it is resident.
        max_step_tokens: the most that one step computes, of prompts and outputs; 0 if no bound is known.
        max_sequences: the most of one model that run at a time; 0 if no bound is known.
    """

    engine: str
    device: str
    sleep: bool
    elastic_kv: bool
    warm: WarmPlace
    adapters: bool
    pid: int
    maps_host_copy: bool = False
    max_step_tokens: int = 0
    max_sequences: int = 0


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """A packed artifact in the store, one contiguous file of weights and its manifest; or a checkpoint folder that
    its engine reads by itself.

    Attributes:
        key: content hash, precision, layout and packer version; names the host copy.
        weights_path: the packed file, or the folder.
        num_bytes: its size; of a folder, that of the weights in it.
        manifest_json: what the engine needs to read it.
        layout: how its bytes lie, for the devices of the workers that read it.
        is_folder: whether it is a folder. That has no host copy.
    """

    key: str
    weights_path: Path
    num_bytes: int
    manifest_json: bytes
    layout: str = "plain"
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """A deployment as the manager knows it.

    Attributes:
        weights_bytes: device bytes of a replica's weights (page-rounded), per device.
        kv_guarantee_bytes: KV that is the deployment's alone while it is resident (page-rounded), as its policy says.
        kv_longest_bytes: KV of one sequence of ``max_model_len`` tokens, or its cap if that is less (page-rounded).
            It is kept for all deployments of a worker together, so that any admitted request can be finished.
        max_model_len: longest prompt plus output in tokens: that of the policy, or the model's own.
        policy: everything else that is asked for it.
        engine: that runs it; any does, if it is empty.
    """

    name: str
    artifact: ArtifactRef
    weights_bytes: int
    kv_guarantee_bytes: int
    kv_longest_bytes: int
    max_model_len: int
    policy: DeploymentPolicy = field(default_factory=DeploymentPolicy)
    engine: str = ""


class WorkerPort(Protocol):
    """A worker as the controller drives it. Every call raises ``WorkerLostError`` when the process is
    gone, and the errors of ``engines.api.Engine`` otherwise."""

    @property
    def worker_id(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def serves(self) -> str:
        """The one deployment that it is for; empty if it is for any."""
        ...

    def capabilities(self) -> Capabilities: ...

    async def load(
        self,
        replica_id: str,
        deployment: DeploymentSpec,
        weights_fd: int,
        checksum: int | None = None,
        from_file: bool = False,
    ) -> int:
        """Makes the replica resident; returns the device bytes of its weights.

        Args:
            weights_fd: descriptor of its host copy, which the worker keeps for wakes.
            checksum: of the host copy (``memory_manager.word_sum``), looked at now and at each wake; None if nobody
                can have written to it.
            from_file: the descriptor is the packed file's, which is read once, in pieces, or the folder's; a replica
                whose worker wants a host copy for that cannot sleep then, as after ``drop_host_copy``.

        Raises:
            HostCopyAlteredError: it has another checksum.
        """
        ...

    async def drop_host_copy(self, replica_id: str) -> None:
        """Lets go of the host copy of a resident replica, which can only be unloaded from now on."""
        ...

    async def sleep(self, replica_id: str) -> int: ...

    async def wake(self, replica_id: str, weights_lease_bytes: int) -> int: ...

    async def unload(self, replica_id: str) -> None: ...

    async def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus: ...

    async def set_memory_limit(self, num_bytes: int) -> int:
        """Sets how much device memory the worker may hold in all although its leases are less, as memory that is
        ready for later; 0, as at first, holds it to its leases. Returns the bytes that left at once."""
        ...

    async def stats(self) -> WorkerStats: ...
