"""Counts the threads that OpenMP keeps in a process with an engine; run as a program, because the counts of one that
has computed before say nothing.

``python -m support.count_helpers PACKED_FOLDER`` prints a JSON object of counts.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bare_engine import PackedModel
from engines.api import LoadSpec, SamplingParams, SequenceRequest, run_step
from engines.config import WorkerOptions
from engines.link.worker_memory import WorkerMemory
from engines.worker.__main__ import build_engine_aside
from mooring.units import MIB

NUM_THREADS = 3


def count(model: PackedModel) -> dict[str, int]:
    """Helpers after the engine was built, after a load, a sleep and a wake, and after steps."""
    torch.set_num_threads(NUM_THREADS)  # starts threads of another kind, which only wait
    before = _not_of_python()
    config: dict[str, Any] = {"num_threads": NUM_THREADS, "cpu_wake": "copy"}
    options = WorkerOptions("torch", "cpu", 512 * MIB, Path("unused"), -1, -1, config)
    memory_fd = WorkerMemory.make()
    engine: Any = build_engine_aside(options, WorkerMemory(memory_fd).recorder)
    helpers = {"built": _not_of_python() - before}
    spec = LoadSpec("m", model.manifest_json, 64, model.weights_bytes, kv_guarantee_bytes=8 * MIB)
    with ThreadPoolExecutor(1) as copier, ThreadPoolExecutor(1) as stepper:
        copier.submit(engine.load, spec, os.open(model.weights_path, os.O_RDONLY)).result()
        copier.submit(engine.sleep, "m").result()
        copier.submit(engine.wake, "m", model.weights_bytes).result()
        helpers["woken"] = _not_of_python() - before
        stepper.submit(_generate, engine).result()
        helpers["stepped"] = _not_of_python() - before
    engine.close()
    return helpers


def _generate(engine: Any) -> None:
    engine.set_lease(64 * MIB, 1)
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    engine.submit(SequenceRequest(1, "m", np.arange(32, dtype=np.int32), sampling))
    while engine.has_work():
        run_step(engine)


def _not_of_python() -> int:
    """Threads that are not Python's, when their number has not changed for a second: helpers end a moment after the
    thread that they helped."""
    counts: deque[int] = deque(maxlen=20)
    while len(counts) < 20 or len(set(counts)) > 1:
        counts.append(len(os.listdir("/proc/self/task")) - threading.active_count())
        time.sleep(0.05)
    return counts[-1]


if __name__ == "__main__":
    print(json.dumps({"num_threads": NUM_THREADS, **count(PackedModel.read(Path(sys.argv[1])))}))
