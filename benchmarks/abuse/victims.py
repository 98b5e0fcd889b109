"""The servers under attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.abuse.attacks import Caller
from benchmarks.abuse.probe import GOOD_REQUEST
from benchmarks.abuse.target import MODEL, Target
from benchmarks.null_model import NullModel, make_null_model
from mooring.units import GIB
from ops.running_server import RunningServer

__all__ = ["Victims", "resident_bytes"]

_REQUIRES_KEYS = ("--require-keys",)
_STEP_S = 0.01
_MAX_DATA_BYTES = 6 * GIB  # of each process, so that an attack that succeeds does not take the machine


class Victims:
    """Starts servers on one data folder, in which two tenants have a key: the good client and the attacker.

    Args:
        scratch: an empty folder.
        hold_s: seconds for which an attack that waits holds what it has.

    Attributes:
        good_key: the good client's key.
        good_text: the answer to ``GOOD_REQUEST`` of a server that nobody attacks.
    """

    def __init__(self, scratch: Path, hold_s: float) -> None:
        self._scratch = scratch
        self._hold_s = hold_s
        self._model = make_null_model(scratch / "model")
        with self._server(step_s=0.0) as server:
            self._attackers_key, self.good_key = (server.new_key(tenant) for tenant in ("attacker", "good"))
            self.good_text = _answer(server, self.good_key)

    @contextmanager
    def target(self, caller: Caller, max_files: int | None) -> Iterator[Target]:
        """A server for this caller, who finds it at addresses of this machine."""
        flags = _REQUIRES_KEYS if caller in (Caller.STRANGER, Caller.TENANT) else ()
        with self._server(flags, max_files) as server:
            keys = {Caller.TENANT: self._attackers_key, Caller.OPERATOR: server.admin_key}
            yield Target(
                http=("127.0.0.1", urlsplit(server.http_url).port or 0),
                grpc=f"127.0.0.1:{server.grpc_target.rpartition(':')[2]}",
                key=keys.get(caller),
                server=server,
                model_folder=self._model.folder,
                scratch=self._scratch,
                hold_s=self._hold_s,
            )

    def _server(
        self, flags: Sequence[str] = (), max_files: int | None = None, step_s: float = _STEP_S
    ) -> RunningServer:
        limits = [f"--data={_MAX_DATA_BYTES}", *([f"--nofile={max_files}"] if max_files is not None else ())]
        config = self._scratch / "mooring.toml"
        config.write_text(_config(self._model, step_s))
        models = {MODEL: self._model.folder}
        return RunningServer(
            self._scratch / "data", models, flags, config=config, through=("prlimit", *limits, "--")
        )


def resident_bytes(server: RunningServer) -> int:
    """Resident memory of a server's processes; 0 if it has ended."""
    total = 0
    try:
        parent = psutil.Process(server.process.pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        return total
    return total


def _config(model: NullModel, step_s: float) -> str:
    return (
        'engine = "null"\nmemory_budget = "256MiB"\nhost_cache_budget = "256MiB"\n'
        f"[null]\nstep_time_s = {step_s}\n"
        f"first_token_id = {model.first_token_id}\nnum_token_ids = {model.num_token_ids}\n"
    )


def _answer(server: RunningServer, key: str) -> str:
    headers = {"authorization": f"Bearer {key}"}
    answer = server.client.post(f"{server.http_url}/v1/completions", json=GOOD_REQUEST, headers=headers)
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text
