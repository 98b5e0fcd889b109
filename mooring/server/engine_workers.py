"""Workers of any engine, started when the first deployment needs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from engines.kinds import EngineKind
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget
from memory_manager.cores import CoreSignal
from mooring.config import Settings
from mooring.errors import NotFoundError
from mooring.server.worker_specs import artifact_layout, worker_specs
from router.control.served_engine import ServedEngine

__all__ = ["EngineWorkers"]

logger = logging.getLogger(__name__)


class EngineWorkers:
    """Starts workers for deployments, one on each device, and ends those that one deployment had for itself.

    Args:
        core_signals: of CPU devices, by name.
        supervisor: keeps alive what is started here.
        grace_s: seconds that requests have to finish on a worker that is to end.
    """

    def __init__(
        self,
        settings: Settings,
        budgets: Sequence[DeviceBudget],
        core_signals: Mapping[str, CoreSignal],
        supervisor: Supervisor,
        grace_s: float,
    ) -> None:
        self._settings = settings
        self._budgets = budgets
        self._core_signals = core_signals
        self._supervisor = supervisor
        self._grace_s = grace_s
        self._started: dict[tuple[str, str], asyncio.Task[None]] = {}  # by engine and what they serve
        self._ending: set[asyncio.Task[None]] = set()

    def engine(self, kind: EngineKind, packed_root: Path) -> ServedEngine:
        """An engine as deployments get it.

        Args:
            packed_root: where artifacts are kept.
        """
        layout = artifact_layout(kind, self._budgets)
        return ServedEngine(
            partial(kind.prepare, packed_root, layout),
            kind.kv_bytes,
            kind.weights_bytes,
            partial(self.start, kind),
            partial(self._stop, kind),
        )

    async def start(self, kind: EngineKind, deployment: str = "") -> None:
        """Starts the workers of an engine that a deployment needs, unless they are there.

        Raises:
            ConfigurationError: one of them ended before it was ready; all are ended, and may be started again.
        """
        key = kind.name, deployment if kind.own_worker else ""
        if key not in self._started:
            self._started[key] = asyncio.create_task(self._start(*key), name=f"start-{kind.name}")
        started = self._started[key]
        try:
            await asyncio.shield(started)
        except Exception:
            if self._started.get(key) is started:
                del self._started[key]
            raise

    async def _start(self, engine: str, serves: str) -> None:
        specs = worker_specs(self._settings, self._budgets, self._core_signals, engine, serves)
        ends = await asyncio.gather(*map(self._supervisor.add, specs), return_exceptions=True)
        errors = [each for each in ends if isinstance(each, BaseException)]
        if errors:
            there = [spec for spec, end in zip(specs, ends, strict=True) if end is None]
            await asyncio.gather(*(self._supervisor.remove(each.worker_id, 0.0) for each in there))
            raise errors[0]

    async def _stop(self, kind: EngineKind, deployment: str) -> None:
        """Begins to end the workers that were a deployment's own; its requests have their time."""
        if kind.own_worker and (started := self._started.pop((kind.name, deployment), None)) is not None:
            started.cancel()
            specs = worker_specs(self._settings, self._budgets, self._core_signals, kind.name, deployment)
            for spec in specs:
                ending = asyncio.create_task(self._remove(spec.worker_id), name=f"end-{spec.worker_id}")
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    async def _remove(self, worker_id: str) -> None:
        try:
            await self._supervisor.remove(worker_id, self._grace_s)
        except NotFoundError:
            logger.info("worker %s was not there yet when its deployment was deleted", worker_id)
