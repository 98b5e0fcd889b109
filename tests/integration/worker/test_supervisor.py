"""Workers are started, restarted and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.core_signals import is_clear
from support.null_worker import WORKER_PROGRAM, null_fleet, until

from engines.config import SupervisorConfig, WorkerSpec
from engines.link.descriptors import DescriptorSender, open_channel
from engines.link.worker_memory import WorkerMemory
from engines.supervise.supervisor import Supervisor, WorkerState, restart_pause_s
from memory_manager.cores import CoreSignal
from mooring.errors import ConfigurationError, WorkerLostError

pytestmark = pytest.mark.integration


def null_spec(**config: object) -> WorkerSpec:
    return WorkerSpec("cpu-0", "null", "cpu", 1 << 28, config)


def supervisor(config: SupervisorConfig | None = None) -> Supervisor:
    def ignore(_: object) -> None:
        pass

    return Supervisor(ignore, ignore, config=config)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_first_restart_is_immediate_and_the_pauses_double_up_to_the_most() -> None:
    config = SupervisorConfig(first_backoff_s=0.5, max_backoff_s=10)
    pauses = [restart_pause_s(deaths, config) for deaths in range(1, 9)]
    assert pauses == [0, 0.5, 1, 2, 4, 8, 10, 10]
    assert restart_pause_s(10**6, config) == 10


async def test_every_life_is_told_of_and_has_a_client_of_its_own() -> None:
    async with null_fleet() as fleet:
        first = fleet.client
        assert fleet.supervisor.workers()[0].state is WorkerState.READY
        for life in (2, 3):
            fleet.resident.clear()
            os.kill(fleet.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                await fleet.resident.wait()
            assert fleet.supervisor.workers()[0].restarts_total == life - 1
        assert fleet.num_deaths == 2
        assert first.lost
        assert fleet.client is not first
        assert not fleet.client.lost


async def test_a_worker_that_dies_in_a_step_leaves_the_cores_to_others() -> None:
    core_signal = CoreSignal.make()
    watched = supervisor()
    async with asyncio.timeout(20):
        await watched.add(replace(null_spec(), core_signal=core_signal))
        core_signal.stop()
        [status] = watched.workers()
        assert status.pid is not None
        os.kill(status.pid, signal.SIGKILL)

        async def cleared() -> bool:
            return is_clear(core_signal)

        await until(cleared)
    await watched.stop(grace_s=0.0)
    core_signal.close()


async def test_a_broken_stream_costs_the_worker_its_life() -> None:
    async with null_fleet() as fleet:
        pid = fleet.pid
        await fleet.client.close()

        async def restarted() -> bool:
            [status] = fleet.supervisor.workers()
            return status.state is WorkerState.READY and status.pid != pid and not alive(pid)

        await until(restarted)


async def test_stop_leaves_neither_process_nor_folder(tmp_path: Path) -> None:
    workers = supervisor(SupervisorConfig(runtime_dir=tmp_path))
    await workers.add(null_spec())
    pid = workers.client("cpu-0").capabilities().pid
    [name] = os.listdir(tmp_path)
    assert os.stat(tmp_path / name).st_mode & 0o077 == 0
    started_s = time.monotonic()
    await workers.stop(grace_s=60)
    assert time.monotonic() - started_s < 30, "an idle worker has nothing to wait for"
    assert not psutil.pid_exists(pid)
    assert not os.listdir(tmp_path)
    assert workers.workers()[0].state is WorkerState.STOPPED
    with pytest.raises(WorkerLostError):
        workers.client("cpu-0")
    await workers.stop(grace_s=5)


async def test_a_worker_that_hangs_is_killed_when_its_grace_is_over() -> None:
    workers = supervisor()
    await workers.add(null_spec())
    pid = workers.client("cpu-0").capabilities().pid
    os.kill(pid, signal.SIGSTOP)
    started_s = time.monotonic()
    await workers.stop(grace_s=0.2)
    assert 0.2 <= time.monotonic() - started_s < 20
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    "spec",
    [
        WorkerSpec("cpu-0", "no-such-engine", "cpu", 1 << 28),
        null_spec(no_such_setting=1),
        WorkerSpec("cpu-0", "null", "cpu", 1 << 28, python="/bin/false"),
        WorkerSpec("cpu-0", "null", "cpu", 1 << 28, python="/no/such/program"),
    ],
    ids=["engine", "setting", "exit", "program"],
)
async def test_a_worker_that_cannot_start_is_the_operators_to_mend(spec: WorkerSpec, tmp_path: Path) -> None:
    workers = supervisor(SupervisorConfig(runtime_dir=tmp_path))
    with pytest.raises(ConfigurationError, match="cpu-0"):
        async with asyncio.timeout(20):
            await workers.add(spec)
    assert workers.workers() == ()
    await workers.stop(grace_s=0.0)
    assert not os.listdir(tmp_path)


async def test_a_worker_that_never_serves_is_given_up(tmp_path: Path) -> None:
    spec = replace(null_spec(), python="/bin/sh", program=("-c", "sleep 60"))
    workers = supervisor(SupervisorConfig(start_timeout_s=0.1, runtime_dir=tmp_path))
    with pytest.raises(ConfigurationError):
        await workers.add(spec)
    await workers.stop(grace_s=0.0)


async def test_a_folder_too_long_for_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    workers = supervisor(SupervisorConfig(runtime_dir=folder))
    with pytest.raises(ConfigurationError, match="runtime_dir"):
        await workers.add(null_spec())


PARENT = """
    import asyncio
    from engines.config import WorkerSpec
    from engines.supervise.supervisor import Supervisor

    async def main():
        supervisor = Supervisor(lambda _: None, lambda _: None)
        await supervisor.add(WorkerSpec("cpu-0", "null", "cpu", 1 << 28))
        print(supervisor.client("cpu-0").capabilities().pid, flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


async def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(PARENT)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    worker_pid = int(await parent.stdout.readline())
    assert alive(worker_pid)
    parent.kill()
    await parent.wait()

    async def gone() -> bool:
        return not alive(worker_pid)

    await until(gone)


async def test_a_worker_ends_when_its_descriptor_channel_does(tmp_path: Path) -> None:
    """Also where the kernel's own signal cannot come: the parent died before the worker asked for it."""
    ours, theirs = open_channel()
    memory_fd = WorkerMemory.make()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *WORKER_PROGRAM),
        *("--engine", "null", "--device", "cpu", "--memory-budget", "1"),
        *("--socket", str(tmp_path / "s"), "--descriptor-fd", str(theirs.fileno())),
        *("--shared-memory-fd", str(memory_fd)),
        pass_fds=(theirs.fileno(), memory_fd),
    )
    theirs.close()
    os.close(memory_fd)
    sender = DescriptorSender(ours, "cpu-0")
    await sender.wait_ready()
    sender.close()
    async with asyncio.timeout(20):
        assert await process.wait() == 3
