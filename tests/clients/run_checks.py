"""Runs the ``check_*`` functions of one module beside this file, in whichever environment has its client.

    python run_checks.py MODULE SERVER_URL

Prints ``ok NAME`` for each; a failed one prints its traceback, and the exit code is 1. Uses nothing but the
standard library: the environments have clients and not our tests' tools.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Raised = TypeVar("Raised", bound=Exception)


@dataclass(frozen=True)
class Server:
    """The server that the clients speak to, and what it says of itself."""

    url: str

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name}{{")]
        return sum(map(float, values))

    def wait_idle(self) -> None:
        """Waits until nothing runs and no KV is held; a client's cancel has to get as far as the blocks."""
        deadline = time.monotonic() + 5
        while self.metric("vllm:num_requests_running") or self.metric("vllm:kv_cache_usage_perc"):
            assert time.monotonic() < deadline, "a cancelled request still runs or holds blocks"
            time.sleep(0.05)


def raised_by(kind: type[Raised], call: Callable[[], object]) -> Raised:
    """The error that a call has to end with."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def main() -> int:
    module, url = sys.argv[1:]
    server = Server(url)
    checks = inspect.getmembers(importlib.import_module(module), inspect.isfunction)
    failed = 0
    for name, check in checks:
        if not name.startswith("check_"):
            continue
        try:
            if inspect.iscoroutinefunction(check):
                asyncio.run(check(server))
            else:
                check(server)
        except Exception:  # each check's end is told, whatever it is
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}")
        else:
            print(f"ok {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
