"""A worker that one kind of prompt kills: the null engine, and death at the ``POISON_AT``-th token of a
sequence whose prompt begins with ``POISON_ID``."""

from __future__ import annotations

import os
import signal
import sys

from engines.api import Engine, SequenceRequest, StepOutput
from engines.config import NullEngineConfig, WorkerOptions
from engines.null import NullEngine
from engines.worker.__main__ import main

POISON_ID = 666
POISON_AT = 5


class PoisonableEngine(NullEngine):
    def __init__(self, config: NullEngineConfig) -> None:
        super().__init__(config)
        self._poisoned: dict[int, int] = {}

    def submit(self, request: SequenceRequest) -> None:
        if request.prompt_ids[0] == POISON_ID:
            self._poisoned[request.sequence_id] = len(request.output_ids)
        super().submit(request)

    def step(self) -> list[StepOutput]:
        outputs = super().step()
        for output in outputs:
            for sequence_id in output.sequence_ids:
                if sequence_id in self._poisoned:
                    self._poisoned[sequence_id] += 1
                    if self._poisoned[sequence_id] >= POISON_AT:
                        os.kill(os.getpid(), signal.SIGKILL)
        return outputs


def poisonable(options: WorkerOptions) -> Engine:
    return PoisonableEngine(NullEngineConfig(**options.config))


if __name__ == "__main__":
    sys.exit(main(factory=poisonable))
