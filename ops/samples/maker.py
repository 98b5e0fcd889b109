"""Makes one sample, in a child process of the server::

    python -m ops.samples.maker NAME --out DIR --parent PID

The process is a job (``mooring.job``) whose result is the sample's folder. A sample that was not done when its parent
ended is begun again by the next one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mooring.child_job import add_job_arguments, do_job
from ops.samples.catalog import SAMPLE_NAMES, make_sample

__all__ = ["main"]


def main() -> int:
    """Runs the module's command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ops.samples.maker", description="Make one sample.")
    parser.add_argument("name", choices=SAMPLE_NAMES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    add_job_arguments(parser)
    args = parser.parse_args()
    return do_job(args, lambda tell: str(make_sample(args.name, args.out, tell)))


if __name__ == "__main__":
    sys.exit(main())
