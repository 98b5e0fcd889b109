"""How far predictions of first tokens were off, by model, and by whether the model had to be woken."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["PredictionRecord", "is_near"]

_ERROR_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_NEAR_SHARE = 0.25
_NEAR_S = 0.05


class PredictionRecord:
    """Counts what predictions came to, of requests that were accepted and got a first token."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "wake"]
        self._errors = Histogram(
            "mooring_ttft_prediction_error_ratio",
            "Seconds by which a predicted time to first token was off, over the seconds that it took.",
            labels,
            buckets=_ERROR_BUCKETS,
            registry=registry,
        )
        self._predictions = Counter(
            "mooring_ttft_predictions",
            "Predicted times to first token, by whether they were within 25 % or 50 ms.",
            [*labels, "outcome"],
            registry=registry,
        )

    def note(self, model: str, predicted_s: float, measured_s: float, *, needed_wake: bool) -> None:
        """Notes a first token.

        Args:
            predicted_s: seconds from the request's arrival, as predicted when it was accepted; finite.
            measured_s: seconds that it took.
            needed_wake: whether the request waited while its model was away.
        """
        labels = (model, "yes" if needed_wake else "no")
        # What came at once, on a coarse clock, is not infinitely far off.
        self._errors.labels(*labels).observe(abs(predicted_s - measured_s) / max(measured_s, 1e-6))
        outcome = "near" if is_near(predicted_s, measured_s) else "off"
        self._predictions.labels(*labels, outcome).inc()


def is_near(predicted_s: float, measured_s: float) -> bool:
    """Whether a prediction was within a quarter of what was measured, or within 50 ms."""
    return abs(predicted_s - measured_s) <= max(_NEAR_SHARE * measured_s, _NEAR_S)
