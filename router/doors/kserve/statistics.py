"""Cumulative statistics of inferences, per model and version, since the server started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Duration", "Inference", "ModelStatistics", "Statistics"]


@dataclass(slots=True)
class Duration:
    """Number of times that something happened, and how long these took in all, in nanoseconds."""

    count: int = 0
    total_ns: int = 0

    def add(self, duration_ns: int) -> None:
        self.count += 1
        self.total_ns += duration_ns


@dataclass(slots=True)
class ModelStatistics:
    """Statistics of one version of one model; counters only grow.

    Attributes:
        last_inference_ms: when the last request came, in milliseconds since the epoch; 0 means never.
        inference_count: requests that succeeded. Each is an execution of its own, since the engine batches
            tokens and not requests.
        success: requests that succeeded, from arrival to end. A request that the client cancelled counts
            neither here nor in ``fail``.
        fail: requests that failed, from arrival to end.
        queue: requests that were given a replica, from arrival until then, tokenizing included.
        compute_infer: requests that succeeded, from the replica to the end.
    """

    name: str
    version: str
    last_inference_ms: int = 0
    inference_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)


class Inference:
    """The measurement of one request, made when the request arrives. A request that the client ends is
    neither a success nor a failure."""

    def __init__(self, statistics: ModelStatistics, clock_ns: Callable[[], int]) -> None:
        self._statistics = statistics
        self._clock_ns = clock_ns
        self._arrival_ns = clock_ns()
        self._started_ns = self._arrival_ns

    def started(self) -> None:
        """Notes that a replica has the request."""
        self._started_ns = self._clock_ns()
        self._statistics.queue.add(self._started_ns - self._arrival_ns)

    def succeeded(self) -> None:
        now_ns = self._clock_ns()
        self._statistics.inference_count += 1
        self._statistics.compute_infer.add(now_ns - self._started_ns)
        self._statistics.success.add(now_ns - self._arrival_ns)

    def failed(self) -> None:
        self._statistics.fail.add(self._clock_ns() - self._arrival_ns)


class Statistics:
    """The statistics of a server; all KServe doors count in them.

    Args:
        clock_ns: monotonic, in nanoseconds.
        wall_clock_s: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock_ns = clock_ns
        self._wall_clock_s = wall_clock_s
        self._models: dict[tuple[str, str], ModelStatistics] = {}

    def begin(self, name: str, version: str) -> Inference:
        """Notes that a request for this model arrived."""
        model = self._of(name, version)
        model.last_inference_ms = int(self._wall_clock_s() * 1000)
        return Inference(model, self._clock_ns)

    def of(self, served: Sequence[tuple[str, str]]) -> list[ModelStatistics]:
        """The figures of these models, given by name and version, in this order."""
        return [self._of(name, version) for name, version in served]

    def _of(self, name: str, version: str) -> ModelStatistics:
        return self._models.setdefault((name, version), ModelStatistics(name, version))
