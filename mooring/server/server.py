"""The server: makes the parts, gives them to each other, opens the doors, and ends it all in order.

Wiring only. At a start the data folder is locked, the registry opened, workers started, the doors opened
(alive and not yet ready), the models of the registry and of the settings served; then it is ready. At
SIGTERM: not ready, new requests refused, running ones given their time, doors shut, workers ended.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from engines.kinds import KINDS, engine_kind
from engines.supervise.supervisor import Supervisor, WorkerState
from memory_manager.cores import CoreSignal, wait_clear
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.events import Reporter
from memory_manager.host.cache import HostCache
from memory_manager.policy.residency import ResidencyEvent
from model_registry.database import open_database
from model_registry.importing.hub import Hub
from model_registry.importing.importer import Importer
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring import __version__
from mooring.config import ModelEntry, Settings
from mooring.errors import ConfigurationError, MooringError
from mooring.server.admin_key import ensure_admin_key, read_metrics_key
from mooring.server.connection_limits import connection_limits, raise_file_limit
from mooring.server.data_dir import own_data_dir, published
from mooring.server.devices import (
    device_budgets,
    device_readers,
    host_cache_budget_bytes,
    is_cpu,
    watch_others,
)
from mooring.server.door_config import HttpLimits
from mooring.server.doors import grpc_door, http_door
from mooring.server.engine_workers import EngineWorkers
from mooring.server.exposure import check_keys, exposure_of
from mooring.server.file_reader import FileReader
from mooring.server.malloc import keep_little_free
from mooring.server.precision import auto_precision
from mooring.server.samples import SampleMaker, model_entries, sample_of
from mooring.server.ui_process import UiProcess
from ops.samples.budget import sample_budget_bytes
from ops.samples.catalog import TRAINED
from router.control.directory import DeploymentDirectory
from router.control.fitting import Fitting
from router.control.journal import Journal, JournalConfig
from router.control.registrar import Registrar
from router.control.registrations import Registrations
from router.dispatch.dispatch import Dispatcher
from router.dispatch.gate import Gate
from router.doors.admin.live import carry_events
from router.doors.admin.playground import create_playground_routes
from router.doors.admin.routes import AdminServices, create_admin_router
from router.doors.grpc.limits import GrpcLimits
from router.doors.grpc_app import create_grpc_server
from router.doors.http.access import OperatorKeys
from router.doors.http_app import create_app
from router.doors.kserve.core import KServe
from router.doors.kserve.repository import DeploymentRepository
from router.doors.kserve.rest import create_kserve_routes
from router.doors.openai.routes import OpenAiApi
from router.feed.feed import Feed, FeedSources
from router.intake import Intake
from router.services import RouterServices
from router.telemetry.gauges import gauges_of
from router.telemetry.metrics import Metrics
from router.tenancy.in_flight import InFlight
from router.tenancy.keys import Tenancy
from router.text.starter import TextStarter
from router.text.text_models import TextModels

__all__ = ["run"]

logger = logging.getLogger("mooring")

_PRECISIONS = {"auto": "auto", "float32": "fp32", "bfloat16": "bf16"}
_WORKER_STOP_S = 5.0

T = TypeVar("T")


def run(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: the settings cannot be served.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("alembic", "uvicorn", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    keep_little_free()
    raise_file_limit()
    with own_data_dir(settings.data_dir):
        uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stopping = _stop_signal()
    async with AsyncExitStack() as stack:
        server = await _unless(stopping, Server.start(settings, stack))
        if server is None or not await _unless(stopping, server.serve_models()):
            return
        await stopping.wait()
        await server.drain()


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. The second one finds no handler and ends the process at once: its
    workers end with it, since the kernel kills them then."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopping.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # asyncio would give SIGINT back to Python

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return stopping


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None if ``stopping`` was set first, and ``work`` is cancelled then."""
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait([task])
        return None
    finally:
        stop.cancel()


@dataclass(slots=True)
class Server:
    """The running parts, as far as the end needs them."""

    settings: Settings
    registrar: Registrar
    samples: SampleMaker
    manager: MemoryManager
    supervisor: Supervisor
    gate: Gate
    directory: DeploymentDirectory
    journal: Journal
    feed: Feed
    ready: bool = False
    addresses: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def start(cls, settings: Settings, stack: AsyncExitStack) -> Server:
        """Makes every part and opens the doors; ``stack`` ends them in the reverse order."""
        exposure = exposure_of(settings)
        text_starter = TextStarter()
        stack.callback(text_starter.close)
        await asyncio.to_thread(text_starter.start)  # what it imports, it imports beside what follows
        admin_key = ensure_admin_key(settings.admin_key_path)
        registry = await asyncio.to_thread(_open_registry, settings, stack)
        await asyncio.to_thread(check_keys, settings, exposure, registry)
        store = await asyncio.to_thread(ArtifactStore, settings.data_dir / "store")
        precision = _precision(settings)
        budgets = device_budgets(settings, sample_budget_bytes(precision) if settings.samples else None)
        core_signals = {each.name: CoreSignal.make() for each in budgets if is_cpu(each.name)}
        for each in core_signals.values():
            stack.callback(each.close)
        wait_for_cores = partial(wait_clear, tuple(core_signals.values()))
        cache = HostCache(
            host_cache_budget_bytes(settings, budgets),
            wait_for_cores=wait_for_cores,
            to_be_pinned=not all(is_cpu(each.name) for each in budgets),
        )
        stack.push_async_callback(cache.close)

        text_models = TextModels(settings.limits, text_starter)
        stack.callback(text_models.close)
        directory = DeploymentDirectory(text_models.drop)
        # Parts that are made below, and that parts before them ask once they are there.
        manager: MemoryManager
        supervisor: Supervisor
        feed: Feed
        metrics = Metrics(
            lambda: gauges_of(manager.snapshot(), supervisor.workers(), feed.utilization()),
            away_s=lambda model: manager.away_s(model),
        )
        journal = Journal(registry, JournalConfig(max_kept=settings.max_events))
        journal.start()
        stack.push_async_callback(journal.stop)
        sink = partial(_note_residency, metrics, lambda: feed.publisher.hurry())
        manager = MemoryManager(budgets, cache, settings.planner, sink=sink, events=journal.note)
        stack.push_async_callback(manager.stop)

        def note_step(replica_id: str, num_computed: Sequence[int], seconds: float) -> None:
            metrics.observe_step(replica_id, sum(num_computed))
            manager.note_step(replica_id, num_computed, seconds)

        supervisor = Supervisor(
            on_ready=manager.add_worker,
            on_lost=manager.worker_lost,
            drain=manager.drain_worker,
            on_step=note_step,
        )
        stack.push_async_callback(supervisor.stop, _WORKER_STOP_S)
        kind = engine_kind(settings.engine)
        workers = EngineWorkers(settings, budgets, core_signals, supervisor, settings.shutdown_grace_s)
        if not kind.own_worker:
            await workers.start(kind)
        packed_root = settings.data_dir / "store" / "packed"
        registrar = Registrar(
            registry=registry,
            store=store,
            importer=Importer(store, registry, FileReader(kind.name), Hub(), settings.data_dir / "downloads"),
            manager=manager,
            directory=directory,
            engines={name: workers.engine(each, packed_root) for name, each in KINDS.items()},
            engine=kind.name,
            precision=_PRECISIONS[settings.dtype],
            precision_for_16_bit=precision,
            reporter=Reporter(time.monotonic, journal.note),
        )
        stack.push_async_callback(registrar.stop)
        registrations = Registrations(registrar, settings.data_dir / "registrations")
        await registrations.restore()
        stack.push_async_callback(registrations.stop, _WORKER_STOP_S)
        samples = SampleMaker(settings.data_dir / "samples", directory)
        stack.push_async_callback(samples.stop)
        gate = Gate(Dispatcher(manager, supervisor.client))
        readers = device_readers(settings, lambda: {os.getpid(), *_worker_pids(supervisor)})
        feed = Feed(
            FeedSources(
                __version__, manager, registrar, registrations, supervisor.workers, readers, cache, metrics
            )
        )
        feed.publisher.while_read(partial(carry_events, feed.publisher, journal))
        stack.callback(asyncio.create_task(feed.run(), name="feed").cancel)
        server = cls(settings, registrar, samples, manager, supervisor, gate, directory, journal, feed)
        config = settings.limits
        services = RouterServices(
            tokens=gate,
            models=directory,
            tenancy=Tenancy(registry.authenticate, allow_anonymous=exposure.allow_anonymous, config=config),
            metrics=metrics,
            is_ready=server.is_ready,
            config=config,
            text_models=text_models,
            in_flight=InFlight(config),
            exposure=exposure,
            ttft_target_s=settings.planner.ttft_target_s,
            tpot_target_s=settings.planner.tpot_target_s,
        )
        admin = AdminServices(
            registry,
            registrar,
            registrations,
            Fitting(registrar),
            manager,
            supervisor.workers,
            feed,
            journal,
            metrics,
        )
        for watching in watch_others(settings, readers, manager.others):
            stack.callback(watching.cancel)
        await server.open_doors(services, admin, admin_key, stack)
        return server

    def is_ready(self) -> bool:
        """Whether a request that comes now can be served."""
        states = {each.state for each in self.supervisor.workers()}
        return self.ready and (
            not states or WorkerState.READY in states
        )  # some engines have one for each model

    async def open_doors(
        self, services: RouterServices, admin: AdminServices, admin_key: str, stack: AsyncExitStack
    ) -> None:
        intake = Intake(services)
        kserve = KServe(services, intake, DeploymentRepository(self.registrar))
        settings = self.settings
        app = create_app(
            services, OperatorKeys(admin_key, read_metrics_key(settings.metrics_key_file)), intake
        )
        app.include_router(create_admin_router(admin))
        answering = OpenAiApi(services, intake).answering_routes()
        app.include_router(create_playground_routes(answering, admin.registry.get_tenant))
        app.router.routes.extend(create_kserve_routes(kserve, max_body_bytes=settings.limits.max_body_bytes))
        limits = HttpLimits(
            max_frame_bytes=settings.limits.max_body_bytes,
            max_head_bytes=settings.max_head_bytes,
            request_timeout_s=settings.request_timeout_s,
            max_reader_stall_s=settings.limits.max_reader_stall_s,
        )
        connections = connection_limits(settings)
        http = http_door(app, settings.http_host, settings.http_port, limits, connections, settings.tls)
        self.addresses["http"] = await stack.enter_async_context(http)

        server = create_grpc_server(
            services, intake, kserve, admin_key, GrpcLimits(max_connections=connections.max_connections)
        )
        rpc = grpc_door(
            server, settings.grpc_host, settings.grpc_port, settings.tls, connections.max_per_address
        )
        self.addresses["grpc"] = await stack.enter_async_context(rpc)
        if settings.tls is not None:
            self.addresses["tls_certificate"] = str(settings.tls.certificate.resolve())
        stack.enter_context(published(settings.data_dir, self.addresses))
        logger.info("HTTP on %s, gRPC on %s", self.addresses["http"], self.addresses["grpc"])
        if settings.ui:
            ui = UiProcess(settings, self.addresses)
            ui.start()
            stack.push_async_callback(ui.stop)

    async def serve_models(self) -> bool:
        """Serves the models that the registry and the settings name; True, and ready, when that is done. Samples
        that have to be trained are begun then.

        Raises:
            ConfigurationError: a model of the settings cannot be served.
        """
        await self.registrar.restore()
        later = []
        for entry in model_entries(self.settings):
            sample = sample_of(entry)
            folder = await self.samples.find(sample) if sample is not None else None
            if sample in TRAINED and folder is None:
                later.append(entry)
                continue
            try:
                if sample is None:
                    await self.registrar.ensure(entry.name, entry.source, _entry_policy(entry))
                else:
                    await self._serve_sample(entry, folder or await self.samples.make(entry.name, sample))
            except MooringError as error:
                raise ConfigurationError(f"model {entry.name}: {error.message}") from error
        self.samples.make_later(later, self._serve_sample)
        self.directory.complete()
        _freeze_what_stays()
        self.ready = True
        logger.info("ready: %s/v1/models lists what is served", self.addresses["http"])
        return True

    async def _serve_sample(self, entry: ModelEntry, folder: Path) -> None:
        await self.registrar.ensure(entry.name, str(folder), _entry_policy(entry), never_changes=True)

    async def drain(self) -> None:
        """Refuses what is new and waits for what runs."""
        self.ready = False
        self.gate.shut()
        self.journal.shut()  # or streams of events would hold up the end of the HTTP door
        self.feed.publisher.shut()
        logger.info("stopping: running requests have %g s", self.settings.shutdown_grace_s)
        if not await self.gate.wait_empty(self.settings.shutdown_grace_s):
            logger.warning("some requests did not end in time and are cut off")
            await self.manager.stop()  # refuses those that wait for their model
            await self.gate.cut_off()


def _precision(settings: Settings) -> str:
    """The precision of 16-bit checkpoints: as set, or the one that suits this machine."""
    if settings.dtype != "auto":
        return _PRECISIONS[settings.dtype]
    choice = auto_precision(settings)
    logger.info("16-bit checkpoints are served in %s: %s", choice.precision, choice.reason)
    return choice.precision


def _freeze_what_stays() -> None:
    """Spares the objects of a started server every later collection of garbage: a full one would hold up the event
    loop for 100 ms and more, and a request that makes many objects causes it."""
    gc.collect()
    gc.freeze()


def _open_registry(settings: Settings, stack: AsyncExitStack) -> Registry:
    engine = open_database(settings.registry_url, settings.database_password_file)
    stack.callback(engine.dispose)
    return Registry(engine, tuple(KINDS))


def _worker_pids(supervisor: Supervisor) -> set[int]:
    return {each.pid for each in supervisor.workers() if each.pid is not None}


def _entry_policy(entry: ModelEntry) -> Mapping[str, Any]:
    """The policy that the settings give a model, and only that: the rest is the administrator's."""
    return entry.model_dump(include=entry.model_fields_set - {"name", "source"})


def _note_residency(metrics: Metrics, publish_soon: Callable[[], None], event: ResidencyEvent) -> None:
    metrics.observe_transition(event)
    publish_soon()
    logger.debug(
        "%s: %s -> %s after %.3f s (%s)",
        *(event.replica_id, event.before.value, event.after.value, event.duration_s, event.reason),
    )
