"""A worker that loses its device once: the torch engine, and a forward pass that raises what CUDA raises.

It does so when a sequence decodes its ``LOST_AT``-th token, unless the file that ``LOST_MARK`` names is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from engines.config import WorkerOptions
from engines.link.flight_recorder import FlightRecorder
from engines.torch.engine import TorchEngine
from engines.torch.factory import torch_engine
from engines.torch.model.batch import ForwardBatch
from engines.torch.model.kv_view import KVCacheView
from engines.torch.model.model import TransformerModel
from engines.worker.__main__ import main

LOST_AT = 40
LOST_MARK = "TEST_LOST_MARK"  # workers inherit no variable that begins with MOORING_


def losing(options: WorkerOptions, recorder: FlightRecorder) -> TorchEngine:
    forward, mark = TransformerModel.forward, Path(os.environ[LOST_MARK])

    def losing_forward(model: TransformerModel, batch: ForwardBatch, kv: KVCacheView) -> Tensor:
        if not mark.exists() and int(batch.context_lens.max()) == LOST_AT:
            mark.touch()
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return forward(model, batch, kv)

    TransformerModel.forward = losing_forward  # type: ignore[method-assign]
    return torch_engine(options, recorder)


if __name__ == "__main__":
    sys.exit(main(factory=losing))
