"""Starts workers, notices when they die, starts them again, and ends those that are no longer wanted.

Each worker has a life of its own: a process in its own process group, a socket in a private folder, a
descriptor channel and a client. When the process ends, its stream breaks or its step hangs, that life is over: the
process group is killed, the process reaped, and the next life begins with new ones of each. The first restart is
immediate, because most deaths are a surprise; a worker that keeps dying is given longer and longer pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from engines.config import ClientConfig, SupervisorConfig, WorkerSpec
from engines.link.descriptors import DescriptorSender, open_channel
from engines.link.worker_memory import WorkerMemory
from engines.supervise.client import StepSink, WorkerClient
from engines.supervise.death import WorkerDeath, death_of, wait_stalled
from mooring.child import child_environment
from mooring.errors import ConfigurationError, ConflictError, MooringError, NotFoundError, WorkerLostError
from mooring.units import MIB

__all__ = ["WORKER_ENVIRONMENT", "Supervisor", "WorkerProcess", "WorkerState", "restart_pause_s"]

logger = logging.getLogger(__name__)

# Between the parallel parts of a step OpenMP's threads spin for the next one. By default they never stop, and
# beside anything else that wants a core (the server itself, its clients) a step takes ten times as long, waiting
# for a thread that is not running. So many turns (a quarter of a millisecond to one) bridge the gaps inside a step
# and little more: with fewer, a thread sleeps in the longer gaps, and to wake it costs more than the gap.
#
# From so many bytes on the C library copies past the caches, without which every line of the target is fetched
# before it is overwritten. By default only from a large part of the last cache on, and weights are copied in pieces.
#
# CUDA's own order of GPUs is by their speed; NVML's, by which their memory is watched, is that of the bus.
WORKER_ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "GOMP_SPINCOUNT": "20000",
    "GLIBC_TUNABLES": f"glibc.cpu.x86_non_temporal_threshold={4 * MIB}",
}

_EXIT_S = 1.0  # from the end of a dying worker's stream to that of its process, at most
_MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path, less its final NUL


class WorkerState(enum.Enum):
    """State of a worker in its lives."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # dead, and its pause not yet over
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One worker as ``mooring status`` shows it.

    Attributes:
        pid: None while there is no process.
        busy_s: seconds of steps that it has run in all its lives.
    """

    worker_id: str
    pid: int | None
    device: str
    state: WorkerState
    restarts_total: int
    busy_s: float = 0.0


def restart_pause_s(num_deaths_in_a_row: int, config: SupervisorConfig) -> float:
    """Seconds to wait before the next life: 0 after the first death, then doubling up to the most."""
    if num_deaths_in_a_row <= 1:
        return 0.0
    doublings = min(num_deaths_in_a_row - 2, 32)  # beyond that it is the maximum in any case
    return min(config.max_backoff_s, config.first_backoff_s * 2.0**doublings)


class _Worker:
    """One worker over all of its lives."""

    def __init__(self, spec: WorkerSpec, socket_prefix: Path) -> None:
        self.spec = spec
        self.socket_prefix = socket_prefix  # each life appends its number
        self.state = WorkerState.STARTING
        self.process: asyncio.subprocess.Process | None = None
        self.client: WorkerClient | None = None
        self.memory: WorkerMemory | None = None  # of the present life
        self.busy_before_s = 0.0  # in lives that have ended
        self.num_lives = 0
        self.stopping = asyncio.Event()  # it gets no further life
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.watch: asyncio.Task[None] | None = None

    def status(self, now_s: float) -> WorkerProcess:
        life_s = 0.0 if self.memory is None else self.memory.status.progress().busy_until_s(now_s)
        return WorkerProcess(
            worker_id=self.spec.worker_id,
            pid=self.process.pid if self.process is not None else None,
            device=self.spec.device,
            state=self.state,
            restarts_total=max(self.num_lives - 1, 0),
            busy_s=self.busy_before_s + life_s,
        )


async def _nothing_to_drain(worker_id: str, within_s: float) -> None:
    pass


class Supervisor:
    """Keeps a changing set of workers alive.

    Runs on a thread that lives as long as the server does, because the kernel ties a worker's life to the
    thread that started it.

    Args:
        on_ready: told of every new life, once its client answers.
        on_lost: told, by worker id, of the end of every life that was ready.
        drain: takes everything off a worker that is to be removed, within so many seconds.
        clock: ``time.monotonic``.
        on_step: told of every step, as in ``WorkerClient``.
    """

    def __init__(
        self,
        on_ready: Callable[[WorkerClient], None],
        on_lost: Callable[[str], None],
        drain: Callable[[str, float], Awaitable[None]] = _nothing_to_drain,
        config: SupervisorConfig | None = None,
        client_config: ClientConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_step: StepSink = lambda replica_id, num_computed, seconds: None,
    ) -> None:
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._drain = drain
        self._config = config or SupervisorConfig()
        self._client_config = client_config or ClientConfig()
        self._clock = clock
        self._on_step = on_step
        self._workers: dict[str, _Worker] = {}
        self._num_added = 0
        self._socket_dir: Path | None = None

    async def add(self, spec: WorkerSpec) -> None:
        """Starts a worker and returns when it is ready; from then on it is kept alive.

        Raises:
            ConflictError: there is a worker of that id.
            ConfigurationError: it ended before it was ever ready; nothing of it is left.
        """
        if spec.worker_id in self._workers:
            raise ConflictError(f"there is a worker {spec.worker_id} already", param="worker_id")
        if self._socket_dir is None:
            self._socket_dir = _make_socket_dir(self._config.runtime_dir)
        worker = self._workers[spec.worker_id] = _Worker(spec, self._socket_dir / str(self._num_added))
        self._num_added += 1
        worker.watch = asyncio.create_task(self._watch(worker), name=f"supervise-{spec.worker_id}")
        try:
            await worker.first_ready
        except BaseException:
            await self._end([worker], grace_s=0.0)
            self._workers.pop(spec.worker_id, None)
            raise

    async def remove(self, worker_id: str, grace_s: float) -> None:
        """Ends a worker for good: it is drained, then its process ends.

        Args:
            grace_s: seconds that its requests have to finish. Those that still run then go on elsewhere.

        Raises:
            NotFoundError: there is no such worker.
        """
        worker = self._workers.get(worker_id)
        if worker is None:
            raise NotFoundError(f"there is no worker {worker_id}")
        worker.stopping.set()
        try:
            async with asyncio.timeout(grace_s + self._config.removal_s):
                await self._drain(worker_id, grace_s)
        except TimeoutError:
            logger.warning("worker %s did not let everything go in time and is ended", worker_id)
        await self._end([worker], self._config.removal_s)
        self._workers.pop(worker_id, None)
        logger.info("worker %s is removed", worker_id)

    async def stop(self, grace_s: float) -> None:
        """Ends every worker: SIGTERM, which drains, and SIGKILL after ``grace_s``. Safe to call twice."""
        await self._end(self._workers.values(), grace_s)
        if self._socket_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    async def _end(self, workers: Iterable[_Worker], grace_s: float) -> None:
        watches = []
        for worker in workers:
            worker.stopping.set()
            if worker.process is not None:
                _signal(worker.process, signal.SIGTERM)
            if worker.watch is not None:
                watches.append(worker.watch)
        if watches:
            _, late = await asyncio.wait(watches, timeout=grace_s)
            for watch in late:
                watch.cancel()  # a cancelled watch kills and reaps its process on its way out
            await asyncio.gather(*watches, return_exceptions=True)

    def client(self, worker_id: str) -> WorkerClient:
        """The present life of a worker.

        Raises:
            WorkerLostError: it has none just now.
        """
        worker = self._workers.get(worker_id)
        if worker is None or worker.client is None:
            raise WorkerLostError(f"worker {worker_id} is not running")
        return worker.client

    def workers(self) -> tuple[WorkerProcess, ...]:
        now_s = self._clock()
        return tuple(worker.status(now_s) for worker in self._workers.values())

    async def _watch(self, worker: _Worker) -> None:
        num_deaths_in_a_row = 0
        try:
            while True:
                worker.state = WorkerState.STARTING
                started_s = self._clock()
                ending = await self._live_once(worker)
                if worker.stopping.is_set():
                    return
                if not worker.first_ready.done():
                    worker.first_ready.set_exception(ConfigurationError(f"{ending}; its log says why"))
                    return
                logger.warning("%s", ending)
                if self._clock() - started_s >= self._config.stable_after_s:
                    num_deaths_in_a_row = 0
                num_deaths_in_a_row += 1
                worker.state = WorkerState.RESTARTING
                if await _stops_within(worker, restart_pause_s(num_deaths_in_a_row, self._config)):
                    return
        except Exception as error:  # a bug of ours: add() must hear of it, not of a cancellation
            if not worker.first_ready.done():
                worker.first_ready.set_exception(error)
            raise
        finally:
            worker.state = WorkerState.STOPPED
            if not worker.first_ready.done():
                worker.first_ready.set_exception(
                    ConfigurationError(f"worker {worker.spec.worker_id} was stopped before it was ready")
                )

    async def _live_once(self, worker: _Worker) -> str:
        """One life, from the start of the process to its last trace. Returns how it ended."""
        worker_id = worker.spec.worker_id
        socket_path = Path(f"{worker.socket_prefix}-{worker.num_lives}.sock")
        try:
            process, descriptors, memory = await _spawn(worker.spec, socket_path)
        except OSError as error:
            return f"worker {worker_id} cannot be started: {error}"
        worker.process, worker.memory = process, memory
        worker.num_lives += 1
        if worker.stopping.is_set():  # who ends it did not see this process yet
            _signal(process, signal.SIGTERM)
        client = WorkerClient(
            worker_id,
            socket_path,
            descriptors,
            self._client_config,
            self._clock,
            self._on_step,
            worker.spec.serves,
        )
        ended = asyncio.create_task(process.wait())
        death = WorkerDeath()
        try:
            await self._make_ready(worker, client, descriptors)
            death = await self._run_to_end(worker.spec, client, memory, process, ended)
        except (MooringError, TimeoutError) as error:
            logger.error("worker %s did not start: %s", worker_id, error)
        finally:
            await self._bury(worker, client, process, ended, death)
            descriptors.close()
        return f"worker {worker_id} ended with status {process.returncode}"

    async def _make_ready(self, worker: _Worker, client: WorkerClient, descriptors: DescriptorSender) -> None:
        async with asyncio.timeout(self._config.start_timeout_s):
            await descriptors.wait_ready()
            await client.connect()
        worker.client = client
        self._on_ready(client)
        worker.state = WorkerState.READY
        logger.info("worker %s is ready as process %d", worker.spec.worker_id, client.capabilities().pid)
        if not worker.first_ready.done():
            worker.first_ready.set_result(None)

    async def _run_to_end(
        self,
        spec: WorkerSpec,
        client: WorkerClient,
        memory: WorkerMemory,
        process: asyncio.subprocess.Process,
        ended: asyncio.Task[int],
    ) -> WorkerDeath:
        """Waits for the end of a life, and kills one whose step hangs; returns how it died."""
        lost = asyncio.create_task(client.wait_lost())
        stalled = asyncio.create_task(wait_stalled(memory.status, spec.max_stall_s, self._clock))
        try:
            await asyncio.wait([ended, lost, stalled], return_when=asyncio.FIRST_COMPLETED)
            hangs = stalled.done() and not ended.done()
            if hangs:
                logger.error(
                    "a step of worker %s hangs for %g s: it is killed", spec.worker_id, spec.max_stall_s
                )
                _signal(process, signal.SIGKILL)
            # The stream of a process that dies ends before it does, by seconds if much memory has to be freed first;
            # a fatal signal keeps its status under another one. A process that lives on lost its stream by no
            # step's fault, and has to go.
            await asyncio.wait([ended], timeout=None if hangs else _EXIT_S)
            _signal(process, signal.SIGKILL)
            await asyncio.wait([ended])
        finally:
            lost.cancel()
            stalled.cancel()
        return death_of(memory, ended.result(), by_us=hangs)

    async def _bury(
        self,
        worker: _Worker,
        client: WorkerClient,
        process: asyncio.subprocess.Process,
        ended: asyncio.Task[int],
        death: WorkerDeath,
    ) -> None:
        """Leaves nothing of a life behind, whatever ended it. Only then is anybody told of the loss: the
        bytes of a worker are free once its process is reaped and not before."""
        was_ready = worker.client is client
        worker.client = None
        _signal(process, signal.SIGKILL)
        try:
            await ended
        finally:
            if worker.spec.core_signal is not None:
                worker.spec.core_signal.clear()  # it may have died in a step
        worker.process = None
        if worker.memory is not None:
            worker.busy_before_s += worker.memory.status.progress().busy_s
            worker.memory = None
        await client.close(death)
        if was_ready:
            self._on_lost(worker.spec.worker_id)


async def _stops_within(worker: _Worker, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await worker.stopping.wait()
    except TimeoutError:
        return False
    return True


def _make_socket_dir(parent: Path | None) -> Path:
    """A new folder that only this user can enter, so that nobody else can talk to a worker."""
    folder = Path(tempfile.mkdtemp(prefix="mooring-", dir=parent))
    if len(os.fsencode(folder / "0000-000000.sock")) > _MAX_SOCKET_PATH_BYTES:
        folder.rmdir()
        raise ConfigurationError(
            f"runtime_dir is too long for Unix sockets of {_MAX_SOCKET_PATH_BYTES} bytes: {folder.parent}"
        )
    return folder


async def _spawn(
    spec: WorkerSpec, socket_path: Path
) -> tuple[asyncio.subprocess.Process, DescriptorSender, WorkerMemory]:
    ours, theirs = open_channel()
    memory_fd = WorkerMemory.make()
    core_signal_fds = spec.core_signal.descriptors if spec.core_signal is not None else ()
    core_signal_flags = ["--core-signal-fds", *map(str, core_signal_fds)] if core_signal_fds else []
    try:
        process = await asyncio.create_subprocess_exec(
            *(spec.python, *spec.program),
            *("--engine", spec.engine, "--device", spec.device),
            *("--memory-budget", str(spec.memory_budget_bytes), "--socket", str(socket_path)),
            *("--descriptor-fd", str(theirs.fileno()), "--shared-memory-fd", str(memory_fd)),
            *("--config", json.dumps(dict(spec.config))),
            *core_signal_flags,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), memory_fd, *core_signal_fds),
            start_new_session=True,  # uvloop knows no process_group
            env=child_environment(WORKER_ENVIRONMENT),
        )
        memory = WorkerMemory(memory_fd)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(memory_fd)
    return process, DescriptorSender(ours, spec.worker_id), memory


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To the whole process group, which is the worker's own; never to a number that is free again."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
