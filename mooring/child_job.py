"""The child's half of a job (``mooring.job``). It does without what the parent's half needs: importing that would be
much of what a short job costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from mooring.child import Limits, limit_this_process
from mooring.errors import ArtifactError, MooringError
from mooring.parent import die_with_parent
from mooring.units import format_bytes

__all__ = ["JobProgress", "add_job_arguments", "do_job"]

JobProgress = Callable[[str, int, int], None]
"""Called with the stage, what is done of it and how much there is in all; 0 in all is not known yet."""

_MAX_MESSAGE_CHARS = 2000  # it may quote what it refuses


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that ``run_job`` gives to every child."""
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--max-memory", type=int, metavar="BYTES", help="address space that it may take")
    parser.add_argument("--max-cpu-s", type=int, metavar="SECONDS", help="processor time that it may take")


def do_job(args: argparse.Namespace, work: Callable[[JobProgress], Any]) -> int:
    """Does the work of this process within its limits and tells the parent how it goes.

    Args:
        args: has the arguments of ``add_job_arguments``.
        work: is given the function that reports progress, and returns the result, as JSON types.

    Returns:
        The exit status of the process.
    """
    die_with_parent(args.parent)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not an answer

        def say(**message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        try:
            if args.max_memory is not None:
                limit_this_process(Limits(args.max_memory, args.max_cpu_s))
            say(result=work(lambda stage, done, total: say(stage=stage, done=done, total=total)))
        except MemoryError:
            if args.max_memory is None:
                raise
            error = ArtifactError(
                f"it needs more memory than its reader may take ({format_bytes(args.max_memory)})"
            )
            say(error=error.message, code=error.code)
            return 1
        except MooringError as named:
            say(error=named.message[:_MAX_MESSAGE_CHARS], code=named.code)
            return 1
    return 0
