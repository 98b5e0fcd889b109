"""The workers that the settings mean, one for each device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from engines.config import CPU_MAX_STALL_S, GPU_MAX_STALL_S, WorkerSpec
from engines.kinds import EngineKind
from memory_manager.config import DeviceBudget
from memory_manager.cores import CoreSignal
from mooring.config import Settings
from mooring.declared import settings_of
from mooring.errors import ConfigurationError
from mooring.server.devices import is_cpu

__all__ = ["artifact_layout", "worker_specs"]


def worker_specs(
    settings: Settings,
    budgets: Sequence[DeviceBudget],
    core_signals: Mapping[str, CoreSignal],
    engine: str,
    serves: str = "",
) -> list[WorkerSpec]:
    """One worker of an engine on each device, numbered in their order.

    Args:
        core_signals: of CPU devices, by name.
        serves: the one deployment that they are for; empty if they are for any.
    """
    stem = f"{engine}-{serves}" if serves else engine
    return [
        WorkerSpec(
            worker_id=f"{stem}-{number}",
            engine=engine,
            device=budget.name,
            memory_budget_bytes=budget.budget_bytes - budget.reserve_bytes,
            config=_engine_config(settings, engine, sum(is_cpu(each.name) for each in budgets)),
            core_signal=core_signals.get(budget.name),
            max_stall_s=settings.max_stall_s or (CPU_MAX_STALL_S if is_cpu(budget.name) else GPU_MAX_STALL_S),
            serves=serves,
        )
        for number, budget in enumerate(budgets)
    ]


def artifact_layout(kind: EngineKind, budgets: Sequence[DeviceBudget]) -> str:
    """Layout of the artifacts that the engine reads on these devices.

    Raises:
        ConfigurationError: it reads several, and a deployment has one artifact.
    """
    layouts = sorted({kind.layout(budget.name) for budget in budgets})
    if len(layouts) > 1:
        raise ConfigurationError(
            f"the devices need artifacts of the layouts {', '.join(layouts)}; use devices of one"
        )
    return layouts[0]


def _engine_config(settings: Settings, engine: str, num_cpu_devices: int) -> dict[str, Any]:
    config = settings_of(getattr(settings, engine))
    if num_cpu_devices > 1 and "num_threads" in config and config["num_threads"] is None:
        # They are the same cores: each takes its part, or they would wait for each other.
        num_cores = len(os.sched_getaffinity(0))
        config["num_threads"] = max(1, num_cores // num_cpu_devices)
    return config
