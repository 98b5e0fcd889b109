"""A worker that some prompts kill: the null engine, which at the ``POISON_AT``-th token of a sequence whose prompt
begins with one of these ids ends as by a fault in C code, ends as by the system's out-of-memory killer, or hangs."""

from __future__ import annotations

import os
import signal
import sys
import time

from engines.api import Engine, SequenceRequest, StepOutput
from engines.config import NullEngineConfig, WorkerOptions
from engines.link.flight_recorder import FlightRecorder
from engines.null import NullEngine
from engines.worker.__main__ import main

CRASHES_ID = 666
IS_KILLED_ID = 667
HANGS_ID = 668
POISON_AT = 5


class PoisonableEngine(NullEngine):
    def __init__(self, config: NullEngineConfig, recorder: FlightRecorder) -> None:
        super().__init__(config, recorder=recorder)
        self._poisons: dict[int, int] = {}  # by sequence id: the first id of the prompt
        self._num_output: dict[int, int] = {}

    def submit(self, request: SequenceRequest) -> None:
        if request.prompt_ids[0] in (CRASHES_ID, IS_KILLED_ID, HANGS_ID):
            self._poisons[request.sequence_id] = request.prompt_ids[0]
            self._num_output[request.sequence_id] = len(request.output_ids)
        super().submit(request)

    def finish(self) -> list[StepOutput]:
        outputs = super().finish()
        for output in outputs:
            for sequence_id in output.sequence_ids:
                if sequence_id in self._poisons:
                    self._num_output[sequence_id] += 1
                    if self._num_output[sequence_id] >= POISON_AT:
                        _end(self._poisons[sequence_id])
        return outputs


def _end(prompt_id: int) -> None:
    if prompt_id == HANGS_ID:
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL if prompt_id == IS_KILLED_ID else signal.SIGSEGV)


def poisonable(options: WorkerOptions, recorder: FlightRecorder) -> Engine:
    return PoisonableEngine(NullEngineConfig(**options.config), recorder)


if __name__ == "__main__":
    sys.exit(main(factory=poisonable))
