"""What the server measures, under the names that vLLM's dashboards read, and ours beside them.

Requests are counted as they go (``Metrics.request``); states such as queue lengths and memory are asked
for when somebody scrapes, so that nothing has to keep a gauge in step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.request import GenerationRequest

__all__ = ["GaugeSource", "Metrics", "ModelGauges", "RequestMetrics"]

# vLLM's bucket edges, in seconds (vllm/v1/metrics/loggers.py).
_TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_LATENCY_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
# Ours: a wake takes milliseconds, a cold load of a large model minutes.
_TRANSITION_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0),
)


@dataclass(frozen=True, slots=True)
class ModelGauges:
    """The present state of one model: requests running and waiting, and the share of its KV memory that
    live sequences hold, from 0 to 1."""

    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage: float


@dataclass(frozen=True, slots=True)
class GaugeSource:
    """Where present states are asked for at a scrape; both answer from memory.

    Attributes:
        models: by name.
        device_memory_bytes: by device and owner.
    """

    models: Callable[[], Mapping[str, ModelGauges]]
    device_memory_bytes: Callable[[], Mapping[tuple[str, str], int]]


class Metrics:
    """All instruments, in a registry of their own.

    Args:
        gauges: the present states.
        clock: seconds, monotonic; the clock of ``GenerationRequest.arrival_s``.
    """

    def __init__(self, gauges: GaugeSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        registry = self._registry = CollectorRegistry()
        self.clock = clock
        model = ["model_name"]

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, model, buckets=buckets, registry=registry)

        self.ttft = seconds("vllm:time_to_first_token_seconds", "Time to first token.", _TTFT_BUCKETS_S)
        self.itl = seconds("vllm:inter_token_latency_seconds", "Inter-token latency.", _ITL_BUCKETS_S)
        self.tpot = seconds(
            "vllm:request_time_per_output_token_seconds",
            "Mean time per output token of a request.",
            _ITL_BUCKETS_S,
        )
        self.e2e = seconds(
            "vllm:e2e_request_latency_seconds", "Latency from arrival to the end.", _LATENCY_BUCKETS_S
        )
        self.prompt_tokens = Counter(
            "vllm:prompt_tokens", "Prompt tokens processed.", model, registry=registry
        )
        self.generation_tokens = Counter(
            "vllm:generation_tokens", "Tokens generated.", model, registry=registry
        )
        self.request_success = Counter(
            "vllm:request_success",
            "Choices ended, by reason.",
            [*model, "finished_reason"],
            registry=registry,
        )
        transition = ["deployment", "from", "to"]
        self._transitions = Counter(
            "mooring_residency_transitions", "Residency changes.", transition, registry=registry
        )
        self._transition_seconds = Histogram(
            "mooring_residency_transition_seconds",
            "Duration of residency changes.",
            transition,
            buckets=_TRANSITION_BUCKETS_S,
            registry=registry,
        )
        registry.register(_GaugeCollector(gauges))

    def request(self, request: GenerationRequest) -> RequestMetrics:
        """The measurements of one request that was accepted."""
        return RequestMetrics(self, request)

    def observe_transition(self, deployment: str, source: str, target: str, duration_s: float) -> None:
        """Counts a residency change of a deployment, from one residency to another."""
        self._transitions.labels(deployment, source, target).inc()
        self._transition_seconds.labels(deployment, source, target).observe(duration_s)

    def expose(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestMetrics:
    """Measures one request from its tokens' arrivals."""

    def __init__(self, metrics: Metrics, request: GenerationRequest) -> None:
        name = request.deployment
        self._metrics = metrics
        self._request = request
        self._itl = metrics.itl.labels(name)
        self._generation_tokens = metrics.generation_tokens.labels(name)
        self._last_s: dict[int, float] = {}  # of each choice that has tokens: when the newest came
        self._first_token_s: float | None = None
        self._ended = False

    def tokens(self, index: int, num_tokens: int) -> None:
        """New tokens of a choice, all of one step."""
        now_s = self._metrics.clock()
        if self._first_token_s is None:
            name = self._request.deployment
            self._first_token_s = now_s
            self._metrics.ttft.labels(name).observe(now_s - self._request.arrival_s)
            self._metrics.prompt_tokens.labels(name).inc(len(self._request.prompt_ids))
        last_s = self._last_s.get(index)
        if last_s is not None:
            self._itl.observe(now_s - last_s)
        self._last_s[index] = now_s
        self._generation_tokens.inc(num_tokens)

    def finished(self, reason: str, num_tokens: int) -> None:
        """A choice ended with this many tokens: ``stop``, ``length``, ``abort`` or ``error``."""
        name = self._request.deployment
        self._metrics.request_success.labels(name, reason).inc()
        if self._first_token_s is not None and num_tokens > 1:
            decode_s = self._metrics.clock() - self._first_token_s
            self._metrics.tpot.labels(name).observe(decode_s / (num_tokens - 1))

    def end(self) -> None:
        """The request is over, however it went. Only the first call counts."""
        if not self._ended:
            self._ended = True
            duration_s = self._metrics.clock() - self._request.arrival_s
            self._metrics.e2e.labels(self._request.deployment).observe(duration_s)


class _GaugeCollector(Collector):
    """Asks for the present states at each scrape."""

    def __init__(self, source: GaugeSource) -> None:
        self._source = source

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Only names: registering must not ask parts of the server that do not run yet."""
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        running, waiting, usage, memory = self._families()
        for name, gauges in self._source.models().items():
            running.add_metric([name], gauges.num_requests_running)
            waiting.add_metric([name], gauges.num_requests_waiting)
            usage.add_metric([name], gauges.kv_cache_usage)
        for (device, owner), num_bytes in self._source.device_memory_bytes().items():
            memory.add_metric([device, owner], num_bytes)
        yield from (running, waiting, usage, memory)

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        model = ["model_name"]
        return (
            GaugeMetricFamily("vllm:num_requests_running", "Requests in the engine's batches.", labels=model),
            GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=model),
            GaugeMetricFamily("vllm:kv_cache_usage_perc", "KV memory in use, 1 is all of it.", labels=model),
            GaugeMetricFamily(
                "mooring_device_memory_bytes", "Device memory by owner.", labels=["device", "owner"]
            ),
        )
