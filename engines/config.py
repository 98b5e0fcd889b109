"""Settings of workers, of those who start them and of those who talk to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_manager.cores import CoreSignal

__all__ = [
    "CPU_STEP_NICENESS",
    "ClientConfig",
    "NullEngineConfig",
    "ServiceConfig",
    "SupervisorConfig",
    "WorkerOptions",
    "WorkerSpec",
]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker as the supervisor starts it.

    Attributes:
        worker_id: stable over restarts; names the worker in leases, logs and status.
        engine: name of a row of ``engines.kinds.KINDS``.
        device: ``"cpu"`` or ``"cuda:0"``.
        memory_budget_bytes: of the device; the capacity of the worker's arena.
        config: settings of the engine, by the field names of its configuration dataclass.
        core_signal: which its steps set, where the device is the CPU.
        command: starts the worker; its flags are appended.
    """

    worker_id: str
    engine: str
    device: str
    memory_budget_bytes: int
    config: Mapping[str, Any] = field(default_factory=dict)
    core_signal: CoreSignal | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "engines.worker")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The command line of a worker.

    Attributes:
        engine: name of a row of ``engines.kinds.KINDS``.
        device: ``"cpu"`` or ``"cuda:0"``.
        memory_budget_bytes: of the device; the capacity of the arena.
        socket_path: where to serve.
        descriptor_fd: the inherited end of the descriptor channel.
        config: settings of the engine.
        core_signal_fds: the inherited descriptors of the ``CoreSignal`` to the server's background threads.
    """

    engine: str
    device: str
    memory_budget_bytes: int
    socket_path: Path
    descriptor_fd: int
    config: Mapping[str, Any]
    core_signal_fds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """How workers are started and restarted.

    Attributes:
        start_timeout_s: a worker that is not serving by then is killed and counts as dead.
        first_backoff_s: pause before the second restart; the first is immediate.
        max_backoff_s: the pause doubles up to this.
        stable_after_s: a worker that lived this long starts again from an immediate restart.
        runtime_dir: parent of the private folder of the sockets; None is the system's temporary folder.
    """

    start_timeout_s: float = 120.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 10.0
    stable_after_s: float = 60.0
    runtime_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a worker is talked to.

    Attributes:
        connect_timeout_s: from a serving worker to its first answer.
        usage_timeout_s: for Stats, which waits for the end of one step at most.
    """

    connect_timeout_s: float = 10.0
    usage_timeout_s: float = 60.0


# Where the device is the cores themselves, a step that shares them evenly with what carries tokens out has one of its
# threads wait for the other most of the time: both take far longer. So that goes first; it is short.
CPU_STEP_NICENESS = 5


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """How a worker serves.

    Attributes:
        descriptor_timeout_s: how long Load waits for the host copy that it names.
        max_concurrent_loads: loads and wakes that copy at once; each of them may use several threads.
        cancel_grace_s: what streams still have to say at a shutdown is given this long to leave.
        step_niceness: added to the step thread's; see ``CPU_STEP_NICENESS``.
    """

    descriptor_timeout_s: float = 10.0
    max_concurrent_loads: int = 2
    cancel_grace_s: float = 1.0
    step_niceness: int = 0


@dataclass(frozen=True, slots=True)
class NullEngineConfig:
    """The engine that runs no model.

    Attributes:
        step_time_s: how long a step takes; 0 is as fast as tokens can be carried away.
        first_token_id: smallest token id it gives.
        num_token_ids: how many different ones; no token repeats within that many of a sequence.
    """

    step_time_s: float = 0.0
    first_token_id: int = 1000
    num_token_ids: int = 30000
