"""What a worker writes into shared memory is read there as it was written, also after its death."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from engines.link.flight_recorder import FlightRecorder
from engines.link.status_page import StatusPage, StepProgress
from engines.link.worker_memory import WorkerMemory

WRITER = """
import os, sys
from engines.link.worker_memory import WorkerMemory

memory = WorkerMemory(int(sys.argv[1]))
memory.status.begin_step(0.5)
memory.status.end_step(3.0)
memory.status.begin_step(1.5)
memory.recorder.begin_step([7, 1 << 40, 2**64 - 1])
os.abort()
"""


def recorder() -> tuple[FlightRecorder, np.ndarray]:
    memory = memoryview(bytearray(FlightRecorder.NUM_BYTES))
    return FlightRecorder(memory), np.frombuffer(memory, np.uint64)


def test_what_a_dead_process_wrote_last_is_there() -> None:
    fd = WorkerMemory.make()
    memory = WorkerMemory(fd)
    ended = subprocess.run([sys.executable, "-c", WRITER, str(fd)], pass_fds=(fd,), capture_output=True)
    os.close(fd)
    assert ended.returncode == -6, ended.stderr
    assert memory.recorder.sequence_ids() == [7, 1 << 40, 2**64 - 1]
    assert memory.status.progress() == StepProgress(num_steps=1, began_s=1.5, busy_s=2.5)


def test_the_memory_of_a_worker_cannot_shrink_under_its_reader() -> None:
    fd = WorkerMemory.make()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_a_step_is_recorded_from_its_beginning_to_its_end() -> None:
    record, _ = recorder()
    assert record.sequence_ids() == []
    record.begin_step(np.array([3, 4], np.uint64))
    assert record.sequence_ids() == [3, 4]
    record.end_step()
    assert record.sequence_ids() == []
    record.begin_step([5])
    assert record.sequence_ids() == [5]


def test_a_death_between_the_ids_and_their_number_leaves_no_step() -> None:
    record, words = recorder()
    record.begin_step([3, 4, 5])
    record.end_step()
    words[1] = 9  # the first id of the next step
    assert record.sequence_ids() == []


def test_a_step_too_large_for_the_record_is_cut() -> None:
    record, words = recorder()
    record.begin_step(range(10_000))
    assert record.sequence_ids() == list(range(len(words) - 1))


def test_the_page_says_since_when_a_step_runs_and_how_many_have_ended() -> None:
    page = StatusPage(memoryview(bytearray(StatusPage.NUM_BYTES)))
    assert page.progress() == (0, 0.0, 0.0)
    for began_s in (5.25, 6.5):
        page.begin_step(began_s)
    assert page.progress() == (0, 6.5, 0.0)
    page.end_step(8.0)
    assert page.progress() == (1, 0.0, 1.5)


def test_the_page_says_how_long_steps_have_taken_the_running_one_included() -> None:
    page = StatusPage(memoryview(bytearray(StatusPage.NUM_BYTES)))
    assert page.progress().busy_until_s(9.0) == 0.0
    for began_s in (10.0, 12.0):
        page.begin_step(began_s)
        page.end_step(began_s + 1)
    assert page.progress().busy_until_s(20.0) == 2.0
    page.begin_step(20.0)
    assert page.progress().busy_until_s(20.5) == 2.5
