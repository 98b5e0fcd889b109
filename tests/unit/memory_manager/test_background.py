"""Threads that leave the cores to others."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from memory_manager.cores import stand_back


def test_only_the_thread_that_asked_stands_back() -> None:
    before = os.sched_getscheduler(0)
    with ThreadPoolExecutor(1, initializer=stand_back) as threads:
        assert threads.submit(os.sched_getscheduler, 0).result() == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == before
