"""The TensorRT-LLM engine in its worker."""

from __future__ import annotations

import os

from engines.config import TensorRtLlmConfig, WorkerOptions
from engines.link.flight_recorder import FlightRecorder
from engines.tensorrt_llm.engine import TensorRtLlmEngine
from engines.tensorrt_llm.surface import load_package

__all__ = ["tensorrt_llm_engine"]


def tensorrt_llm_engine(options: WorkerOptions, recorder: FlightRecorder) -> TensorRtLlmEngine:
    """Makes the engine on the GPUs of its worker.

    Raises:
        ConfigurationError: the package cannot be used.
    """
    config = TensorRtLlmConfig(**options.config)
    kind, _, index = options.device.partition(":")
    if kind == "cuda":
        # The package, and the processes that it starts, take GPUs from the first on.
        gpus = range(int(index or 0), int(index or 0) + config.tensor_parallel_size)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    return TensorRtLlmEngine(config, load_package(), options.device, recorder)
