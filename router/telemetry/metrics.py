"""The server's metrics, under the names that vLLM's dashboards read, and our own metrics beside them.

docs/metrics.md has the list. Names, labels and buckets of ``vllm:`` metrics are vLLM's
(vllm/v1/metrics/loggers.py); metrics of requests have the tenant as a label beside the model. Metrics of the
present state are in ``router.telemetry.gauges``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from memory_manager.policy.residency import ResidencyEvent
from mooring.slo import SLOClass
from router.request.request import GenerationRequest
from router.telemetry.attainment import Attainments, Miss
from router.telemetry.audit import AuditTrail
from router.telemetry.gauges import ENGINE, AttainmentCollector, GaugeCollector, Gauges, ModelGauges
from router.telemetry.predictions import PredictionRecord
from router.telemetry.recent import Recent
from router.telemetry.request_metrics import RequestMetrics, RequestSeries
from router.telemetry.waits import Spent, Wait, Waited

__all__ = ["Gauges", "Metrics", "ModelGauges"]

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
# vLLM's buckets end at its one model's longest context; ours serve all models.
_TOKEN_BUCKETS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
_ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES_BUCKETS = (1, 2, 5, 10, 20)
# Ours: a wake takes milliseconds, a cold load of a large model minutes.
_TRANSITION_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0),
)

_REQUEST_HISTOGRAMS: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    ("ttft", "time_to_first_token_seconds", "Time to first token.", _TTFT_BUCKETS_S),
    ("itl", "inter_token_latency_seconds", "Inter-token latency.", _ITL_BUCKETS_S),
    (
        "tpot",
        "request_time_per_output_token_seconds",
        "Mean time per output token of a choice.",
        _ITL_BUCKETS_S,
    ),
    ("e2e", "e2e_request_latency_seconds", "From arrival to the end.", _LATENCY_BUCKETS_S),
    ("queue", "request_queue_time_seconds", "From arrival to the first step.", _LATENCY_BUCKETS_S),
    (
        "prefill",
        "request_prefill_time_seconds",
        "From the first step to the first token.",
        _LATENCY_BUCKETS_S,
    ),
    ("decode", "request_decode_time_seconds", "From the first token to the last.", _LATENCY_BUCKETS_S),
    (
        "inference",
        "request_inference_time_seconds",
        "From the first step to the last token.",
        _LATENCY_BUCKETS_S,
    ),
    ("num_prompt", "request_prompt_tokens", "Prompt tokens of a request.", _TOKEN_BUCKETS),
    (
        "num_computed",
        "request_prefill_kv_computed_tokens",
        "Prompt tokens of a request whose KV was computed.",
        _TOKEN_BUCKETS,
    ),
    ("num_output", "request_generation_tokens", "Output tokens of a choice.", _TOKEN_BUCKETS),
    (
        "max_output",
        "request_max_num_generation_tokens",
        "Output tokens of a request's longest choice.",
        _TOKEN_BUCKETS,
    ),
    ("n", "request_params_n", "Choices wanted.", _CHOICES_BUCKETS),
    ("max_tokens", "request_params_max_tokens", "The limit of the output, in tokens.", _TOKEN_BUCKETS),
)
_FINISH_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """All instruments, in a registry of their own.

    Args:
        read_gauges: returns the present states; answers from memory.
        away_s: seconds for which a model has been away in all, by its name (``router.telemetry.waits``).
        clock: seconds, monotonic; the clock of ``GenerationRequest.arrival_s``.

    Attributes:
        recent: figures of the last seconds, for who watches.
    """

    def __init__(
        self,
        read_gauges: Callable[[], Gauges],
        *,
        away_s: Callable[[str], float] = lambda model: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self.clock = clock
        self._away_s = away_s
        labels = ["model_name", "engine", "tenant"]
        self._histograms = {
            attribute: Histogram(f"vllm:{name}", text, labels, buckets=buckets, registry=registry)
            for attribute, name, text, buckets in _REQUEST_HISTOGRAMS
        }
        self._prompt_tokens = Counter(
            "vllm:prompt_tokens", "Prompt tokens processed.", labels, registry=registry
        )
        self._prompt_tokens_by_source = Counter(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens, by where their KV comes from.",
            [*labels, "source"],
            registry=registry,
        )
        self._generation_tokens = Counter(
            "vllm:generation_tokens", "Tokens generated.", labels, registry=registry
        )
        self._request_success = Counter(
            "vllm:request_success",
            "Choices ended, by reason.",
            [*labels, "finished_reason"],
            registry=registry,
        )
        self._iteration_tokens = Histogram(
            "vllm:iteration_tokens_total",
            "Tokens of a step.",
            ["model_name", "engine"],
            buckets=_ITERATION_BUCKETS,
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
        self.audit = AuditTrail(registry)
        self._predictions = PredictionRecord(registry)
        self.recent = Recent()
        self.attainments = Attainments()
        registry.register(AttainmentCollector(self.attainments, clock))
        registry.register(GaugeCollector(read_gauges))
        registry.register(_SecondName(self._histograms["itl"], "vllm:time_per_output_token_seconds"))
        self._series: dict[tuple[str, str], RequestSeries] = {}

    def wait(self, model: str) -> Wait:
        """The wait of a request that comes now."""
        return Wait(model, self._away_s, self.clock)

    def request(
        self, request: GenerationRequest, waited: Waited, predicted_ttft_s: float | None
    ) -> RequestMetrics:
        """The measurements of one request that a worker has now.

        Args:
            predicted_ttft_s: seconds from its arrival to its first token, as predicted; None if nobody could tell.
        """
        key = (request.deployment, request.tenant)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._make_series(*key)
        record, predicted_s = self._predictions, predicted_ttft_s

        def note_first(measured_s: float) -> None:
            self.recent.note_first(measured_s, self.clock())
            if predicted_s is not None and math.isfinite(predicted_s):
                needed_wake = waited.wake_s > 0
                record.note(request.deployment, predicted_s, measured_s, needed_wake=needed_wake)

        return RequestMetrics(series, request, waited, note_first, self.attainments, self.recent, self.clock)

    def refused(
        self, request_id: str, model: str, tenant: str, slo_class: SLOClass | None, waited: Waited
    ) -> None:
        """Counts a request that was refused, or failed before there was anything of it to measure, as one that missed
        its targets."""
        self.recent.num_refused += 1
        miss = Miss(request_id, time.time(), None, None, Spent(*waited))
        self.attainments.note(tenant, slo_class, model, miss, self.clock())

    def observe_step(self, replica_id: str, num_tokens: int) -> None:
        """Counts a step of a replica and the tokens that it computed, those of prompts included."""
        deployment, _, _ = replica_id.rpartition("/")
        self._iteration_tokens.labels(deployment, ENGINE).observe(num_tokens)

    def observe_transition(self, event: ResidencyEvent) -> None:
        """Counts a change of residency, and the seconds spent in the residency before it."""
        change = (event.deployment, event.before.value, event.after.value)
        self._transitions.labels(*change).inc()
        self._transition_seconds.labels(*change).observe(event.duration_s)

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _make_series(self, model: str, tenant: str) -> RequestSeries:
        labels = (model, ENGINE, tenant)
        return RequestSeries(
            **{name: histogram.labels(*labels) for name, histogram in self._histograms.items()},
            prompt_tokens=self._prompt_tokens.labels(*labels),
            computed_tokens=self._prompt_tokens_by_source.labels(*labels, "local_compute"),
            generation_tokens=self._generation_tokens.labels(*labels),
            success={reason: self._request_success.labels(*labels, reason) for reason in _FINISH_REASONS},
        )


class _SecondName(Collector):
    """Shows an instrument also under the name that it had in earlier releases of vLLM."""

    def __init__(self, instrument: Histogram, name: str) -> None:
        self._instrument = instrument
        self._name = name

    def describe(self) -> Iterable[Metric]:
        return [self._renamed(metric) for metric in self._instrument.describe()]

    def collect(self) -> Iterator[Metric]:
        for metric in self._instrument.collect():
            yield self._renamed(metric)

    def _renamed(self, metric: Metric) -> Metric:
        renamed = Metric(self._name, f"{metric.documentation} The name in older dashboards.", metric.type)
        renamed.samples = [
            sample._replace(name=self._name + sample.name.removeprefix(metric.name))
            for sample in metric.samples
        ]
        return renamed
