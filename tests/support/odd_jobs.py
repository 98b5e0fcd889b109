"""A child that does what its command line says; see ``tests/unit/mooring/test_job.py``."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time

from mooring.child_job import JobProgress, add_job_arguments, do_job
from mooring.errors import ArtifactError

_KEPT = []


def _work(what: str, tell: JobProgress) -> object:
    tell("begin", 1, 2)
    print("a library's chatter")
    print("a secret path\x1b[2J", file=sys.stderr, flush=True)
    if what.startswith("heir"):  # which holds the standard error for longer than the child lives
        heir = subprocess.Popen(["sleep", "600"], start_new_session="in a session of its own" in what)
        tell("heir", heir.pid, 0)
        if "hold" in what:
            ctypes.PyDLL(None).sleep(600)
    match what:
        case "fork":  # a copy holds all that the child has open, its answers' pipe too
            if (copy := os.fork()) == 0:
                os.setsid()
                time.sleep(600)
            tell("heir", copy, 0)
            os._exit(3)
        case "result":
            return {"environment": dict(os.environ), "pid": os.getpid()}
        case "refuse":
            raise ArtifactError("it is broken")
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "eat":
            _KEPT.extend(bytearray(64 << 20) for _ in range(1 << 20))
        case "compute":
            9 ** (9**9)
        case "hold":  # keeps the interpreter's lock: nothing in the child could end this
            ctypes.PyDLL(None).sleep(600)
        case "sleep":
            time.sleep(600)
    return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    add_job_arguments(parser)
    args = parser.parse_args()
    return do_job(args, lambda tell: _work(args.what, tell))


if __name__ == "__main__":
    if sys.argv[1] == "nonsense":
        print("{]", flush=True)
    if sys.argv[1] == "deep nonsense":
        print("[" * 100_000, flush=True)
    sys.exit(main())
