"""The torch engine in its worker."""

from __future__ import annotations

from engines.config import TorchEngineConfig, WorkerOptions
from engines.link.flight_recorder import FlightRecorder
from engines.torch.engine import TorchEngine
from memory_manager.arena.factory import arena_on
from memory_manager.cores import CoreSignal

__all__ = ["torch_engine"]


def torch_engine(options: WorkerOptions, recorder: FlightRecorder) -> TorchEngine:
    """Makes the engine and the arena of its device."""
    config = TorchEngineConfig(device=options.device, **options.config)
    # Pages made once are mapped again in no time, so they are kept as long as the manager lets this worker hold them:
    # within its leases, and beyond them if nobody else is on the device.
    budget_bytes = options.memory_budget_bytes
    arena = arena_on(options.device, budget_bytes, budget_bytes, config.ready_bytes, limit_bytes=0)
    core_signal = CoreSignal(*options.core_signal_fds) if options.core_signal_fds is not None else None
    return TorchEngine(config, arena, core_signal, recorder)
