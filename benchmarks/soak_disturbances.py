"""Disturbances of a server during a soak: sleeps, wakes, registrations, memory pressure, deaths of
workers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.streams import Stream
from mooring.errors import MooringError
from ops.running_server import RunningServer

__all__ = ["Disturbances", "Guest"]

_REGISTER_TIMEOUT_S = 120.0
# Takes memory, touches it, says so, and keeps it until its input ends.
_EATER = (
    "import sys; held = bytearray(int(sys.argv[1])); "
    "held[::4096] = b'x' * len(held[::4096]); print('held', flush=True); sys.stdin.read()"
)


@dataclass(frozen=True, slots=True)
class Guest:
    """A model that is registered, asked and deleted again and again.

    Attributes:
        policy: policy of its deployment, as the admin API takes it.
        streams: requests that it is sent each time.
    """

    name: str
    folder: Path
    policy: dict[str, Any]
    streams: Sequence[Stream]


class Disturbances:
    """Disturbs the server now and then, at random from a seed.

    Args:
        models: deployments that stay; they are put to sleep and woken.
        run: runs streams and judges them.
        pressure_bytes: memory that a process beside the server takes at times; 0 for none.

    Attributes:
        counts: how often each kind of disturbance was done.
    """

    def __init__(
        self,
        server: RunningServer,
        models: Sequence[str],
        guest: Guest,
        bursts: Sequence[Stream],
        run: Callable[[Sequence[Stream]], Awaitable[None]],
        pressure_bytes: int,
        seed: int,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._server = server
        self._models = models
        self._guest = guest
        self._bursts = bursts
        self._run = run
        self._pressure_bytes = pressure_bytes
        self._rng = random.Random(seed)

    async def disturb(self) -> None:
        """Does one disturbance, to its end."""
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "sleeps": self._sleep,
            "wakes": self._wake,
            "registrations": self._register,
            "kv_bursts": self._burst,
        }
        if self._pressure_bytes:
            kinds["memory_pressures"] = self._press
        kind = self._rng.choice(list(kinds))
        await kinds[kind]()
        self.counts[kind] += 1

    def kill_workers(self) -> None:
        """Kills all workers that are ready, with SIGKILL."""
        for pid in self._server.worker_pids():
            os.kill(pid, signal.SIGKILL)
            self.counts["worker_kills"] += 1

    async def _sleep(self) -> None:
        await self._admin("POST", f"/deployments/{self._rng.choice(self._models)}/sleep")

    async def _wake(self) -> None:
        await self._admin("POST", f"/deployments/{self._rng.choice(self._models)}/wake")

    async def _register(self) -> None:
        guest = self._guest
        body = {"name": guest.name, "source": str(guest.folder), "policy": guest.policy}
        registration = await self._admin("POST", "/models", body)
        if not registration:
            return
        deadline_s = time.monotonic() + _REGISTER_TIMEOUT_S
        while registration["state"] == "running":
            if time.monotonic() > deadline_s:
                raise MooringError(f"registering {guest.name} does not end: {registration}")
            await asyncio.sleep(0.2)
            registration = await self._admin("GET", f"/registrations/{registration['id']}")
        if registration["state"] != "done":
            raise MooringError(f"registering {guest.name} failed: {registration['error']}")
        await self._run(guest.streams)
        await self._admin("DELETE", f"/deployments/{guest.name}")
        await self._admin("DELETE", f"/models/{guest.name}")

    async def _burst(self) -> None:
        """Asks for more KV than there is room for, all at once."""
        await self._run(self._bursts)

    async def _press(self) -> None:
        eater = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _EATER, str(self._pressure_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert eater.stdout is not None, "it was asked for"
            await eater.stdout.readline()
            await asyncio.sleep(self._rng.uniform(0.5, 3.0))
        finally:
            await eater.communicate(b"")  # closes its input, which ends it; without an argument it would not

    async def _admin(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        response = await asyncio.to_thread(self._server.admin, method, path, body)
        if response.status_code == 503:  # the worker died meanwhile: the next disturbance will do
            self.counts["refused_for_now"] += 1
            return {}
        if not response.is_success:
            raise MooringError(f"{method} {path}: {response.status_code} {response.text}")
        found: dict[str, Any] = response.json() if response.content else {}
        return found
