"""Runs the parts of a benchmark that only compute in processes beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["run_all"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_processes: int = 2
) -> Iterator[Result]:
    """Yields what a function makes of each job, in the order of the jobs.

    Args:
        function: of a module; it, its jobs and its results are pickled.
    """
    # Not forked: this process may have an engine with threads.
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        try:
            yield from pool.map(function, jobs)
        except BaseException:  # terminated
            pool.shutdown(wait=False, cancel_futures=True)
            raise
