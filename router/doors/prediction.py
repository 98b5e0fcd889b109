"""The prediction that goes with the answer to an accepted request, in the same form at every door."""

from __future__ import annotations

import math

__all__ = ["PREDICTED_TTFT", "prediction", "whole_ms"]

PREDICTED_TTFT = "x-mooring-predicted-ttft-ms"
"""The header of HTTP, and the initial metadata of gRPC."""


def prediction(predicted_ttft_s: float | None) -> dict[str, str]:
    """The header with a prediction; none if there is none."""
    return {} if predicted_ttft_s is None else {PREDICTED_TTFT: str(whole_ms(predicted_ttft_s))}


def whole_ms(seconds: float) -> int:
    """Milliseconds, rounded up."""
    return math.ceil(1000 * seconds)
