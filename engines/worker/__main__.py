"""The worker: a process that runs one engine and serves it over a Unix socket.

Started by the supervisor and by nobody else::

    python -m engines.worker --engine torch --device cpu --memory-budget BYTES \\
        --socket PATH --descriptor-fd N --shared-memory-fd N --config JSON

SIGTERM drains: nothing new is taken, what runs ends, then the process does. A worker never outlives the
server: the kernel kills it with its parent, and the end of the descriptor channel does the same if the
parent was gone before the kernel was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio
import uvloop

from engines.api import DeviceLostError, Engine
from engines.config import CPU_STEP_NICENESS, ServiceConfig, WorkerOptions
from engines.kinds import EngineFactory, engine_kind
from engines.link.descriptors import DescriptorReceiver
from engines.link.flight_recorder import FlightRecorder
from engines.link.wire import CHANNEL_OPTIONS
from engines.link.worker_memory import WorkerMemory
from engines.worker.service import EngineService
from mooring.errors import ConfigurationError
from mooring.parent import die_with_parent
from mooring.v1 import engine_pb2_grpc

__all__ = ["build_engine", "build_engine_aside", "main"]

logger = logging.getLogger(__name__)

_EXIT_ORPHANED = 3
_EXIT_ENGINE_FAILED = 4
_EXIT_DEVICE_LOST = 5
_STEP_STOP_TIMEOUT_S = 5.0


def parse_options(arguments: Sequence[str]) -> WorkerOptions:
    parser = argparse.ArgumentParser(prog="engines.worker", description="A worker of Mooring.")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--memory-budget", type=int, required=True, metavar="BYTES")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--descriptor-fd", type=int, required=True)
    parser.add_argument("--shared-memory-fd", type=int, required=True)
    parser.add_argument("--core-signal-fds", type=int, nargs=2)
    parser.add_argument("--config", type=json.loads, default={}, metavar="JSON")
    flags = parser.parse_args(arguments)
    return WorkerOptions(
        engine=flags.engine,
        device=flags.device,
        memory_budget_bytes=flags.memory_budget,
        socket_path=flags.socket,
        descriptor_fd=flags.descriptor_fd,
        shared_memory_fd=flags.shared_memory_fd,
        config=flags.config,
        core_signal_fds=flags.core_signal_fds and tuple(flags.core_signal_fds),
    )


def build_engine(
    options: WorkerOptions, recorder: FlightRecorder, factory: EngineFactory | None = None
) -> Engine:
    """Returns the engine that ``options`` names, or the one that ``factory`` makes.

    Raises:
        ConfigurationError: there is none of that name, or it does not know one of its settings.
    """
    factory = factory or engine_kind(options.engine).load_factory()
    try:
        return factory(options, recorder)
    except TypeError as error:
        raise ConfigurationError(f"engine {options.engine} refuses its settings: {error}") from error


def build_engine_aside(
    options: WorkerOptions, recorder: FlightRecorder, factory: EngineFactory | None = None
) -> Engine:
    """Returns what ``build_engine`` makes on a thread that ends with it.

    A thread that computes in parallel keeps OpenMP's helpers as long as it lives. If helpers of others make the
    process's threads more than the cores, the step's no longer spin for its next parallel part but sleep, and a
    small model's step takes twice as long.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build_engine, options, recorder, factory).result()


def _exit_orphaned() -> None:
    # There is nobody left to answer and nothing worth saving; a step or a copy may be stuck in C code.
    os._exit(_EXIT_ORPHANED)


async def _serve(options: WorkerOptions, engine: Engine, memory: WorkerMemory, config: ServiceConfig) -> int:
    loop = asyncio.get_running_loop()
    ending: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ending.done():
            ending.set_result(status)

    def fail(error: BaseException) -> None:
        if isinstance(error, DeviceLostError):
            os._exit(_EXIT_DEVICE_LOST)  # on the way out, whatever touches the device would fail or hang
        end(_EXIT_ENGINE_FAILED)

    channel = socket.socket(fileno=options.descriptor_fd)
    channel.setblocking(False)
    descriptors = DescriptorReceiver(channel, on_closed=_exit_orphaned)
    service = EngineService(engine, descriptors, memory, config, time.monotonic, on_failure=fail)
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    engine_pb2_grpc.add_EngineServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{options.socket_path}")
    service.start()
    await server.start()
    loop.add_signal_handler(signal.SIGTERM, lambda: end(0))
    descriptors.start()
    status = await ending
    if status == 0:
        await service.drain()
    await server.stop(config.cancel_grace_s)
    descriptors.close()
    if not service.stop(_STEP_STOP_TIMEOUT_S):
        os._exit(_EXIT_ENGINE_FAILED)  # the interpreter would wait for threads that wait for the step
    return status


def main(arguments: Sequence[str] | None = None, factory: EngineFactory | None = None) -> int:
    """Runs a worker to its end; returns the exit status."""
    die_with_parent()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's; it ends its workers in order
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s worker[{os.getpid()}] %(name)s: %(message)s"
    )
    memory = WorkerMemory(options.shared_memory_fd)
    os.close(options.shared_memory_fd)
    try:
        engine = build_engine_aside(options, memory.recorder, factory)
    except ConfigurationError as error:
        logger.error("%s", error.message)
        return 2
    on_cpu = options.device.partition(":")[0] == "cpu"
    config = ServiceConfig(step_niceness=CPU_STEP_NICENESS if on_cpu else 0)
    return uvloop.run(_serve(options, engine, memory, config))


if __name__ == "__main__":
    sys.exit(main())
