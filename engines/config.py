"""Configuration of workers and engines, of the supervisor and of the client that talks to workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from memory_manager.cores import CoreSignal
from mooring.declared import Bounds, Setting, check_bounds
from mooring.errors import ConfigurationError
from mooring.units import MIB

__all__ = [
    "CPU_MAX_STALL_S",
    "CPU_STEP_NICENESS",
    "GPU_MAX_STALL_S",
    "ClientConfig",
    "NullEngineConfig",
    "ServiceConfig",
    "SupervisorConfig",
    "TensorRtLlmConfig",
    "TorchEngineConfig",
    "WorkerOptions",
    "WorkerSpec",
]

_NOT_NEGATIVE = Bounds(ge=0)
_AT_LEAST_ONE = Bounds(ge=1)

# A step has at most ``max_tokens_per_step`` tokens of one model. On a GPU that is a second; the rest is for kernels
# that are compiled in the first steps. On a CPU, 512 tokens of an 8B model are 8 TFLOP: two minutes on two cores, and
# twice that beside other processes.
GPU_MAX_STALL_S = 60.0
CPU_MAX_STALL_S = 600.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker as the supervisor starts it.

    Attributes:
        worker_id: stable over restarts; names the worker in leases, logs and status.
        engine: name of a row of ``engines.kinds.KINDS``.
        device: ``"cpu"`` or ``"cuda:0"``.
        memory_budget_bytes: bytes of the device; the capacity of the worker's arena.
        config: settings of the engine, by the field names of its configuration dataclass.
        core_signal: signal that its steps set, if the device is the CPU.
        max_stall_s: a worker whose step runs for longer is killed and started again.
        python: the interpreter that runs the worker, for an engine that lives in an environment of its own; Mooring
            has to be importable there.
        program: arguments of the interpreter; the worker's flags follow.
        serves: the one deployment that it is for; empty if it is for any.
    """

    worker_id: str
    engine: str
    device: str
    memory_budget_bytes: int
    config: Mapping[str, Any] = field(default_factory=dict)
    core_signal: CoreSignal | None = None
    max_stall_s: float = CPU_MAX_STALL_S
    python: str = sys.executable
    program: tuple[str, ...] = ("-m", "engines.worker")
    serves: str = ""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The command line of a worker.

    Attributes:
        engine: name of a row of ``engines.kinds.KINDS``.
        device: ``"cpu"`` or ``"cuda:0"``.
        memory_budget_bytes: bytes of the device; the capacity of the arena.
        socket_path: path of the socket to serve.
        descriptor_fd: the inherited end of the descriptor channel.
        shared_memory_fd: the inherited descriptor of this life's ``engines.link.worker_memory``.
        config: settings of the engine.
        core_signal_fds: the inherited descriptors of the ``CoreSignal`` to the server's background threads.
    """

    engine: str
    device: str
    memory_budget_bytes: int
    socket_path: Path
    descriptor_fd: int
    shared_memory_fd: int
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
        removal_s: a worker that is removed and has not let everything go so long after its grace is ended as it is,
            and is killed when it has not ended after so long again.
        runtime_dir: parent of the private folder of the sockets; None is the system's temporary folder.
    """

    start_timeout_s: float = 120.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 10.0
    stable_after_s: float = 60.0
    removal_s: float = 5.0
    runtime_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a worker is talked to.

    Attributes:
        connect_timeout_s: longest time from a serving worker to its first answer.
        usage_timeout_s: longest time for Stats, which waits for the end of one step at most.
    """

    connect_timeout_s: float = 10.0
    usage_timeout_s: float = 60.0


# If the device is the cores themselves, a step that shares them evenly with what carries tokens out has one of its
# threads wait for the other most of the time: both take far longer. So that goes first; it is short.
CPU_STEP_NICENESS = 5


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """How a worker serves.

    Attributes:
        descriptor_timeout_s: how long Load waits for the host copy that it names.
        max_concurrent_loads: loads and wakes that copy at once; each of them may use several threads.
        cancel_grace_s: seconds that streams have at a shutdown for what they still have to say.
        step_niceness: niceness added to the step thread's; see ``CPU_STEP_NICENESS``.
    """

    descriptor_timeout_s: float = 10.0
    max_concurrent_loads: int = 2
    cancel_grace_s: float = 1.0
    step_niceness: int = 0


@dataclass(frozen=True, slots=True)
class TorchEngineConfig:
    """How a torch worker runs its models. The fields that are no settings are:

    Attributes:
        kv_range_bytes: virtual address range of the KV pool, the most KV that any lease can grant; None is
            the arena's capacity. Address space only: nothing is committed until blocks are taken.
        device: the device that ``capabilities`` reports; the tensors live where the arena's memory is.
        max_turns_waited: turns that other models may take before a model with work goes first whatever its
            deadlines.
        num_copy_threads: threads that copy weights from the host copy to a device that is the CPU.
        copy_chunk_bytes: bytes of one copy from the host copy to a GPU.
    """

    kv_range_bytes: int | None = None
    device: str = "cpu"
    max_tokens_per_step: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting("Prompt and decode tokens of one step; more favours throughput over latency."),
    ] = 512
    max_running_sequences: Annotated[
        int, _AT_LEAST_ONE, Setting("Sequences of one model that may run at once.")
    ] = 64
    max_turns_waited: int = 8
    num_threads: Annotated[
        int | None, _AT_LEAST_ONE, Setting("CPU threads of a worker; unset: one for each core it may use.")
    ] = None
    num_copy_threads: Annotated[int, _AT_LEAST_ONE] = 2
    copy_chunk_bytes: Annotated[int, _AT_LEAST_ONE] = 8 * MIB
    cpu_wake: Annotated[
        Literal["remap", "copy"],
        Setting(
            "How weights come to a device that is the CPU: `remap` uses the host cache's own pages and copies "
            "nothing, `copy` copies them as for a GPU."
        ),
    ] = "remap"
    ready_bytes: Annotated[
        int,
        _NOT_NEGATIVE,
        Setting("Device memory that is made ahead of need, so that growing costs no step anything."),
    ] = 64 * MIB
    kv_swap_bytes: Annotated[
        int,
        _NOT_NEGATIVE,
        Setting(
            "Host memory for the KV of preempted sequences, which is copied there where that is quicker than "
            "computing it again; 0 always computes it again."
        ),
    ] = 64 * MIB

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_tokens_per_step < self.max_running_sequences:
            raise ConfigurationError(
                f"max_tokens_per_step ({self.max_tokens_per_step}) must be at least max_running_sequences "
                f"({self.max_running_sequences}): every running sequence decodes one token a step",
                param="max_tokens_per_step",
            )


@dataclass(frozen=True, slots=True)
class NullEngineConfig:
    """The engine that runs no model. No token repeats within ``num_token_ids`` tokens of a sequence."""

    step_time_s: Annotated[
        float,
        _NOT_NEGATIVE,
        Setting("How long each of its steps takes; 0 is as fast as tokens are carried away."),
    ] = 0.0
    first_token_id: Annotated[int, _NOT_NEGATIVE, Setting("The smallest token id it gives.")] = 1000
    num_token_ids: Annotated[int, _AT_LEAST_ONE, Setting("How many different ones it gives.")] = 30000

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True)
class TensorRtLlmConfig:
    """How a TensorRT-LLM worker runs its models."""

    tensor_parallel_size: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting(
            "GPUs that hold a model together: the worker's own and those after it, which must be nobody else's."
        ),
    ] = 1
    max_num_tokens: Annotated[
        int, _AT_LEAST_ONE, Setting("Prompt and decode tokens of one step; longer prompts come in pieces.")
    ] = 8192
    max_batch_size: Annotated[int, _AT_LEAST_ONE, Setting("Sequences of one model that may run at once.")] = (
        256
    )
    host_kv_bytes: Annotated[
        int,
        _NOT_NEGATIVE,
        Setting("Host memory of a model for KV blocks that have no room on the device; 0 is none."),
    ] = 0
    sleep: Annotated[
        bool,
        Setting(
            "Models that leave their device keep their weights in pinned host memory, with 1.4 and later versions; "
            "otherwise they are stopped and started."
        ),
    ] = True
    guided_decoding_backend: Annotated[
        Literal["xgrammar", "llguidance"] | None,
        Setting("TensorRT-LLM's backend for guided decoding; unset: none is prepared."),
    ] = None
    speculative_config: Annotated[
        str | None,
        Setting(
            "TensorRT-LLM's `speculative_config` as a JSON object, with 1.3 and later versions; unset: none."
        ),
    ] = None
    max_silence_s: Annotated[
        float,
        Bounds(gt=0),
        Setting("A worker whose sequences have had nothing for so long is ended and started again."),
    ] = 120.0

    def __post_init__(self) -> None:
        check_bounds(self)
        try:
            is_object = self.speculative_config is None or isinstance(
                json.loads(self.speculative_config), dict
            )
        except ValueError:
            is_object = False
        if not is_object:
            raise ConfigurationError("speculative_config must be a JSON object", param="speculative_config")
