"""The tensors that an answer may have: those of Triton's vLLM backend and of TensorRT-LLM's ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["OUTPUTS", "Output"]


class Output(NamedTuple):
    """One output tensor; -1 in ``dims`` means any size. The first dimension counts choices, unless it is
    1."""

    name: str
    datatype: str
    dims: tuple[int, ...]


OUTPUTS: Mapping[str, Output] = MappingProxyType(
    {
        output.name: output
        for output in (
            Output("text_output", "BYTES", (-1,)),
            Output("finish_reason", "BYTES", (-1,)),
            Output("num_input_tokens", "UINT32", (1,)),
            Output("num_output_tokens", "UINT32", (-1,)),
            Output("cumulative_logprob", "FP32", (-1,)),
            Output("logprobs", "BYTES", (-1,)),
            Output("cum_log_probs", "FP32", (-1,)),
            Output("output_log_probs", "FP32", (-1, -1)),
        )
    }
)
"""Every output by its name."""
