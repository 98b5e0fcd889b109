"""A double of NVIDIA's TensorRT-LLM, made from the record of its API: the names and arguments of the package, a state
machine that sleeps and wakes, and tokens that follow from what was before them. It runs no model."""

from __future__ import annotations

from tensorrt_llm.api import version
from tensorrt_llm.llmapi import LLM, SamplingParams

__version__ = version()
__all__ = ["LLM", "SamplingParams", "__version__"]
