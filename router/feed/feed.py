"""The live feed: reads the parts of the server for the publisher, and samples them for rates, history and alerts.

Once a second it looks at what only grows (tokens, steps), every five seconds at everything. What takes time, the
devices' own figures, is read on threads, and that of their memory only while somebody reads.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from engines.supervise.supervisor import WorkerProcess
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.status import Snapshot
from memory_manager.host.cache import HostCache
from memory_manager.watch.devices import DeviceReader
from mooring.merge_patch import Document, filled
from router.control.registrar import Registrar
from router.control.registration import Registration
from router.control.registrations import Registrations
from router.feed.alerts import Alerts, conditions
from router.feed.attainment import attainment_part, attainment_share
from router.feed.deployments import DeploymentDocuments
from router.feed.history import INTERVAL_S, History
from router.feed.publisher import Publication, Publisher
from router.feed.rounding import short
from router.feed.segments import kv_parts
from router.feed.state import HostTierStatus, Present, server_state
from router.telemetry.metrics import Metrics
from router.telemetry.recent import Rates

__all__ = ["Feed", "FeedSources"]

SAMPLE_S = 1.0
_SAMPLES_A_ROW = round(INTERVAL_S / SAMPLE_S)
_NUM_REGISTRATIONS = 20  # that have ended and are still shown


@dataclass(frozen=True, slots=True)
class FeedSources:
    """The parts that the feed reads.

    Attributes:
        workers: the supervisor's view of its processes.
        readers: readers of the devices' own figures, by device.
    """

    version: str
    manager: MemoryManager
    registrar: Registrar
    registrations: Registrations
    workers: Callable[[], Sequence[WorkerProcess]]
    readers: Mapping[str, DeviceReader]
    host_cache: HostCache
    metrics: Metrics


class Feed:
    """The feed of a server; belongs to its event loop.

    Attributes:
        publisher: publishes the state.
        history: the last hour.
        rates: of the last seconds.
    """

    def __init__(self, sources: FeedSources) -> None:
        self.publisher = Publisher(self._state)
        self.history = History()
        self.rates = Rates()
        self._sources = sources
        self._started_at_s = time.time()
        self._offset_s = time.time() - time.monotonic()  # one for all, so that times stand still
        self._memory: dict[str, Document] = {}
        self._memory_read_s = -SAMPLE_S
        self._computes: dict[str, float] = {}  # shares that devices tell themselves
        self._deployments = DeploymentDocuments(sources.registrar.engine)
        self._alerts = Alerts()
        self._kept: Document = {}  # the parts of the state that there may be a thousand entries of
        self._kept_read_s = -SAMPLE_S
        self._snapshot = sources.manager.snapshot()
        self.publisher.while_read(self._read_memory_repeatedly)

    # What is asked.

    async def fresh(self) -> Publication:
        """The state of now, published."""
        if time.monotonic() - self._memory_read_s > SAMPLE_S:
            await self._read_memory()
        return self.publisher.publish()

    async def fresh_with_snapshot(self) -> tuple[Publication, Snapshot]:
        """The state of now, published, and the manager's own account that it was made of."""
        published = await self.fresh()
        return published, self._snapshot

    def utilization(self) -> dict[str, float]:
        """Share of the last seconds in which a device computed, by device: by the device's own account, else the
        share in which a step of a worker ran."""
        return {**self.rates.busy_shares(), **self._computes}

    def now_s(self) -> float:
        """Seconds of the Unix epoch, on the clock of all that is published."""
        return time.monotonic() + self._offset_s

    # Sampling.

    async def run(self) -> None:
        """Samples until it is cancelled."""
        number = 0
        while True:
            for device, reader in self._sources.readers.items():
                share = await asyncio.to_thread(reader.busy_share)
                if share is not None:
                    self._computes[device] = share
                else:
                    self._computes.pop(device, None)
            self.sample(is_row=number % _SAMPLES_A_ROW == 0)
            number += 1
            await asyncio.sleep(SAMPLE_S)

    def sample(self, *, is_row: bool) -> None:
        """Takes the sample of a second, and where it makes a row, that of all figures."""
        now_s = time.monotonic()
        busy_s: dict[str, float] = defaultdict(float)
        for worker in self._sources.workers():
            busy_s[worker.device] += worker.busy_s
        self.rates.note(now_s, self._sources.metrics.recent.totals(), busy_s)
        if is_row:
            snapshot = self._sources.manager.snapshot()
            self._note_alerts(snapshot)
            self.history.note(now_s + self._offset_s, self._row(snapshot, now_s))

    def _row(self, snapshot: Snapshot, now_s: float) -> dict[str, float | None]:
        figures = self._figures(snapshot, now_s)
        kv_in_use: dict[str, int] = defaultdict(int)
        for worker in snapshot.workers:
            kv_in_use[worker.device] += kv_parts(worker.stats)["in_use_bytes"]
        shown = {name: None if value is None else short(value) for name, value in figures.items()}
        return {
            **shown,
            **{f"utilization:{device}": round(share, 2) for device, share in self.utilization().items()},
            **{f"kv_in_use:{device}": num_bytes for device, num_bytes in kv_in_use.items()},
            "attainment": attainment_share(self._sources.metrics.attainments.entries(), now_s),
        }

    # The state.

    def _state(self) -> Document:
        sources, now_s = self._sources, time.monotonic()
        snapshot = self._snapshot = sources.manager.snapshot()
        directory = sources.registrar.directory
        records = sources.registrar.records()
        reasons = {name: why for name in records if (why := directory.reason(name)) is not None}
        if now_s - self._kept_read_s >= SAMPLE_S:
            self._kept_read_s = now_s
            self._kept = {
                "attainment": attainment_part(sources.metrics.attainments.entries(), now_s),
                "alerts": self._note_alerts(snapshot),
            }
        return server_state(
            Present(
                snapshot=snapshot,
                offset_s=self._offset_s,
                server={
                    "version": sources.version,
                    "started_at": round(self._started_at_s, 3),
                    "epoch": self.publisher.epoch,
                },
                workers=sources.workers(),
                memory=self._memory,
                utilization=self.utilization(),
                host=self._host(),
                deployments=self._deployments.show(
                    snapshot, self._offset_s, records, reasons, directory.preparing()
                ),
                registrations=self._registrations(),
                figures=self._figures(snapshot, now_s),
                **self._kept,
            )
        )

    def _figures(self, snapshot: Snapshot, now_s: float) -> dict[str, float | None]:
        recent = self._sources.metrics.recent
        tokens, ended, refused = self.rates.per_s(now_s, recent.totals())
        median_s, late_s = recent.ttft_s(now_s, 0.5, 0.95)
        replicas = [replica for each in snapshot.deployments for replica in each.replicas]
        num_queued = sum(each.num_queued for each in replicas)
        return {
            "tokens_per_s": tokens,
            "requests_per_s": ended,
            "refused_per_s": refused,
            "running": sum(each.num_active for each in replicas) - num_queued,
            "waiting": sum(each.num_waiting for each in snapshot.deployments) + num_queued,
            "ttft_p50_s": median_s,
            "ttft_p95_s": late_s,
        }

    def _host(self) -> HostTierStatus:
        cache = self._sources.host_cache
        served: dict[str, list[str]] = defaultdict(list)
        for model in self._sources.registrar.directory.list():
            served[model.artifact_key].append(model.name)
        return HostTierStatus(cache.budget_bytes, cache.used_bytes, cache.copies(), served)

    def _registrations(self) -> Document:
        """Registrations that run, and the last that have ended."""
        all_of_them = self._sources.registrations.list()
        ended = [each for each in all_of_them if each.state != "running"]
        shown = [each for each in all_of_them if each.state == "running"] + ended[-_NUM_REGISTRATIONS:]
        return {each.id: _registration(each) for each in shown}

    def _note_alerts(self, snapshot: Snapshot) -> Document:
        sources, now_s = self._sources, time.monotonic()
        restarted = self._alerts.note_workers(sources.workers(), now_s)
        found = conditions(snapshot, sources.metrics.attainments.entries(), restarted, now_s)
        return self._alerts.note(found, time.time())

    # The devices' memory.

    async def _read_memory_repeatedly(self) -> None:
        while True:
            await self._read_memory()
            await asyncio.sleep(SAMPLE_S)

    async def _read_memory(self) -> None:
        self._memory_read_s = time.monotonic()
        for device, reader in self._sources.readers.items():
            memory = await asyncio.to_thread(reader.read)
            if memory is not None:
                self._memory[device] = filled(**asdict(memory), free_bytes=memory.free_bytes)
            else:
                self._memory.pop(device, None)


def _registration(registration: Registration) -> Document:
    return filled(
        id=registration.id,
        name=registration.name,
        source=registration.source,
        created_at=registration.created_at_s,
        state=registration.state,
        stage=registration.stage,
        done_bytes=registration.done_bytes,
        total_bytes=registration.total_bytes,
        stages=[asdict(each) for each in registration.stages],
        error=registration.error,
    )
