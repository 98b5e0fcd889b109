"""Makes one sample, in a child process of the server::

    python -m ops.samples.maker NAME --out DIR --parent PID

It prints one JSON object a line: ``{"stage": ..., "done": ..., "total": ...}`` as it goes, and at its end
``{"folder": ...}``, or ``{"error": ..., "code": ...}`` before it exits with 1. It ends with its parent, and a sample
that was not done by then is begun again by the next one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mooring.errors import MooringError
from mooring.parent import die_with_parent
from ops.samples.catalog import SAMPLE_NAMES, make_sample

__all__ = ["main"]


def main() -> int:
    """Runs the module's command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ops.samples.maker", description="Make one sample.")
    parser.add_argument("name", choices=SAMPLE_NAMES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    args = parser.parse_args()
    die_with_parent(args.parent)
    try:
        folder = make_sample(args.name, args.out, _tell_progress)
    except MooringError as error:
        _print_line(error=error.message, code=error.code)
        return 1
    _print_line(folder=str(folder))
    return 0


def _tell_progress(stage: str, done: int, total: int) -> None:
    _print_line(stage=stage, done=done, total=total)


def _print_line(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
