"""Metrics of the present state, read whenever somebody scrapes, so that nothing has to keep a gauge up to
date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from types import MappingProxyType

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.supervise.supervisor import WorkerProcess
from memory_manager.fleet.status import DeploymentStatus, DeviceQueueStatus, Snapshot
from router.telemetry.attainment import Attainments

__all__ = ["ENGINE", "AttainmentCollector", "GaugeCollector", "Gauges", "ModelGauges", "gauges_of"]

ENGINE = "0"
"""The value of the label ``engine``: vLLM numbers its data-parallel engines, and its dashboards select by
number."""

# vLLM's words for the place of a model. A model on its way counts as where it comes from.
_SLEEP_STATES: Mapping[str, str] = MappingProxyType(
    {
        "resident": "awake",
        "draining": "awake",
        "warm": "weights_offloaded",
        "waking": "weights_offloaded",
        "cold": "discard_all",
        "loading": "discard_all",
        "failed": "discard_all",
    }
)


@dataclass(frozen=True, slots=True)
class ModelGauges:
    """The present state of one model.

    Attributes:
        num_requests_running: requests in its replicas' batches.
        num_requests_queued: requests on its replicas that wait for room in a batch.
        num_requests_deferred: requests that wait for a replica to be resident.
        kv_cache_usage: share of the KV memory that its live sequences hold, from 0 to 1.
        num_preemptions: sequences that lost their blocks; starts from 0 with each load.
        prefix_query_tokens: prompt tokens looked up in the prefix cache; starts from 0 with each load.
        prefix_hit_tokens: prompt tokens found there; starts from 0 with each load.
        residency: as the glossary names it.
    """

    num_requests_running: int
    num_requests_queued: int
    num_requests_deferred: int
    kv_cache_usage: float
    num_preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    residency: str = "resident"


@dataclass(frozen=True, slots=True)
class Gauges:
    """The present states at one moment.

    Attributes:
        models: states of the models, by name.
        device_memory_bytes: bytes by device and owner.
        kv_unused_bytes: bytes of committed KV memory that holds no token, by worker and kind.
        queues: those of the devices.
        device_budget_bytes: budgets, by device.
        utilization: share of the last seconds in which a device computed, by device.
        workers: the supervisor's view of its processes.
        num_ledger_mismatches: polls at which a worker held other bytes than the ledger says.
    """

    models: Mapping[str, ModelGauges] = field(default_factory=dict)
    device_memory_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    kv_unused_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    queues: Sequence[DeviceQueueStatus] = ()
    device_budget_bytes: Mapping[str, int] = field(default_factory=dict)
    utilization: Mapping[str, float] = field(default_factory=dict)
    workers: Sequence[WorkerProcess] = ()
    num_ledger_mismatches: int = 0


def gauges_of(
    snapshot: Snapshot, workers: Sequence[WorkerProcess], utilization: Mapping[str, float]
) -> Gauges:
    """The gauges for a snapshot of the memory manager; workers and utilization are as in ``Gauges``."""
    kv_lease_bytes = sum(worker.kv_lease_bytes for worker in snapshot.workers)
    return Gauges(
        models={each.name: _model_gauges(each, kv_lease_bytes) for each in snapshot.deployments},
        device_memory_bytes={
            (device.name, owner): num_bytes
            for device in snapshot.devices
            for owner, num_bytes in device.owners.items()
        },
        kv_unused_bytes={
            (worker.worker_id, kind.removesuffix("_bytes")): num_bytes
            for worker in snapshot.workers
            for kind, num_bytes in asdict(worker.stats.fragmentation).items()
        },
        queues=snapshot.queues,
        device_budget_bytes={each.name: each.budget_bytes for each in snapshot.devices},
        utilization=utilization,
        workers=workers,
        num_ledger_mismatches=snapshot.num_ledger_mismatches,
    )


def _model_gauges(deployment: DeploymentStatus, kv_lease_bytes: int) -> ModelGauges:
    replicas = deployment.replicas
    return ModelGauges(
        num_requests_running=sum(each.num_active - each.num_queued for each in replicas),
        num_requests_queued=sum(each.num_queued for each in replicas),
        num_requests_deferred=deployment.num_waiting,
        kv_cache_usage=sum(each.stats.kv_live_bytes for each in replicas) / max(kv_lease_bytes, 1),
        num_preemptions=sum(each.stats.preemptions_total for each in replicas),
        prefix_query_tokens=sum(each.stats.prefix_query_tokens_total for each in replicas),
        prefix_hit_tokens=sum(each.stats.prefix_hit_tokens_total for each in replicas),
        residency=deployment.residency.value,
    )


class GaugeCollector(Collector):
    """Reads the present states once at each scrape.

    Args:
        read: returns the states; answers from memory.
    """

    def __init__(self, read: Callable[[], Gauges]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Names of the metrics only: registering must not ask parts of the server that do not run yet."""
        families = _model_families(), _device_families(), _queue_families(), _worker_families()
        return (*chain.from_iterable(families), _unused_family())

    def collect(self) -> Iterator[Metric]:
        present = self._read()
        families = _model_families()
        running, waiting, by_reason, usage, old_usage, preemptions, queries, hits, sleep = families
        for name, gauges in present.models.items():
            model = [name, ENGINE]
            running.add_metric(model, gauges.num_requests_running)
            waiting.add_metric(model, gauges.num_requests_queued + gauges.num_requests_deferred)
            by_reason.add_metric([*model, "capacity"], gauges.num_requests_queued)
            by_reason.add_metric([*model, "deferred"], gauges.num_requests_deferred)
            usage.add_metric(model, gauges.kv_cache_usage)
            old_usage.add_metric(model, gauges.kv_cache_usage)
            preemptions.add_metric(model, gauges.num_preemptions)
            queries.add_metric(model, gauges.prefix_query_tokens)
            hits.add_metric(model, gauges.prefix_hit_tokens)
            sleep_state = _SLEEP_STATES[gauges.residency]
            for state in sorted(set(_SLEEP_STATES.values())):
                sleep.add_metric([*model, state], state == sleep_state)
        yield from families
        yield from _filled_device_families(present)
        yield from _filled_worker_families(present)
        unused = _unused_family()
        for (worker, kind), num_bytes in present.kv_unused_bytes.items():
            unused.add_metric([worker, kind], num_bytes)
        yield unused
        waiting, jain = _queue_families()
        for queue in present.queues:
            waiting.add_metric([queue.device, "in_time"], queue.num_in_time)
            waiting.add_metric([queue.device, "late"], queue.num_late)
            jain.add_metric([queue.device], queue.jain_index)
        yield waiting
        yield jain


class AttainmentCollector(Collector):
    """Reads at each scrape how many requests met their targets.

    Args:
        clock: the one of those who note requests.
    """

    def __init__(self, attainments: Attainments, clock: Callable[[], float]) -> None:
        self._attainments = attainments
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return _attainment_families()

    def collect(self) -> Iterator[Metric]:
        now_s = self._clock()
        ratio, goal, requests = _attainment_families()
        for entry in self._attainments.entries():
            labels = [entry.tenant, entry.slo_class, entry.model]
            requests.add_metric([*labels, "met"], entry.total.num_met)
            requests.add_metric([*labels, "missed"], entry.total.num_missed)
            if entry.goal is not None:
                goal.add_metric(labels, entry.goal)
            for name, window in entry.windows.items():
                if (attained := window.count(now_s).attained) is not None:
                    ratio.add_metric([*labels, name], attained)
        yield from (ratio, goal, requests)


_ModelFamilies = tuple[
    GaugeMetricFamily,
    GaugeMetricFamily,
    GaugeMetricFamily,
    GaugeMetricFamily,
    GaugeMetricFamily,
    CounterMetricFamily,
    CounterMetricFamily,
    CounterMetricFamily,
    GaugeMetricFamily,
]


def _model_families() -> _ModelFamilies:
    model = ["model_name", "engine"]
    usage = "KV memory in use, 1 is all of it."
    return (
        GaugeMetricFamily("vllm:num_requests_running", "Requests in the engine's batches.", labels=model),
        GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=model),
        GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait: capacity is for room in a batch, deferred for the model to be resident.",
            labels=[*model, "reason"],
        ),
        GaugeMetricFamily("vllm:kv_cache_usage_perc", usage, labels=model),
        GaugeMetricFamily(
            "vllm:gpu_cache_usage_perc", f"{usage} The name in older dashboards.", labels=model
        ),
        CounterMetricFamily("vllm:num_preemptions", "Sequences that lost their blocks.", labels=model),
        CounterMetricFamily(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", labels=model
        ),
        CounterMetricFamily(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", labels=model
        ),
        GaugeMetricFamily(
            "vllm:engine_sleep_state",
            "1 for the state in which the model is.",
            labels=[*model, "sleep_state"],
        ),
    )


def _device_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "mooring_device_memory_bytes", "Device memory by owner.", labels=["device", "owner"]
        ),
        GaugeMetricFamily("mooring_device_budget_bytes", "Memory budget of a device.", labels=["device"]),
        GaugeMetricFamily(
            "mooring_device_utilization_ratio",
            "Share of the last seconds in which a device computed.",
            labels=["device"],
        ),
    )


def _filled_device_families(present: Gauges) -> Iterator[Metric]:
    memory, budget, utilization = _device_families()
    for (device, owner), num_bytes in present.device_memory_bytes.items():
        memory.add_metric([device, owner], num_bytes)
    for device, num_bytes in present.device_budget_bytes.items():
        budget.add_metric([device], num_bytes)
    for device, share in present.utilization.items():
        utilization.add_metric([device], share)
    yield from (memory, budget, utilization)


def _worker_families() -> tuple[CounterMetricFamily, CounterMetricFamily, CounterMetricFamily]:
    labels = ["worker", "device"]
    return (
        CounterMetricFamily(
            "mooring_worker_busy_seconds", "Seconds of steps that it has run.", labels=labels
        ),
        CounterMetricFamily("mooring_worker_restarts", "Times it was started again.", labels=labels),
        CounterMetricFamily(
            "mooring_ledger_mismatches",
            "Polls at which a worker held other bytes than the ledger says; anything but 0 is a bug.",
            labels=[],
        ),
    )


def _filled_worker_families(present: Gauges) -> Iterator[Metric]:
    busy, restarts, mismatches = _worker_families()
    for worker in present.workers:
        busy.add_metric([worker.worker_id, worker.device], worker.busy_s)
        restarts.add_metric([worker.worker_id, worker.device], worker.restarts_total)
    mismatches.add_metric([], present.num_ledger_mismatches)
    yield from (busy, restarts, mismatches)


def _attainment_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, CounterMetricFamily]:
    labels = ["tenant", "class", "model"]
    return (
        GaugeMetricFamily(
            "mooring_slo_attainment_ratio",
            "Share of the requests that ended within a window and met the targets of their SLO class.",
            labels=[*labels, "window"],
        ),
        GaugeMetricFamily(
            "mooring_slo_goal_ratio", "Share of requests that is to meet the targets.", labels=labels
        ),
        CounterMetricFamily(
            "mooring_slo_requests",
            "Requests that ended, by whether they met the targets of their SLO class.",
            labels=[*labels, "outcome"],
        ),
    )


def _queue_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "mooring_queue_requests",
            "Requests in the queue of a device, by whether they can still begin in time.",
            labels=["device", "state"],
        ),
        GaugeMetricFamily(
            "mooring_fairness_jain_index",
            "How evenly a device has served the tenants that want it now, by their weights; 1 is evenly.",
            labels=["device"],
        ),
    )


def _unused_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "mooring_kv_unused_bytes",
        "Committed KV memory that holds no token: free pages, vacant places, tails of pages, unfilled blocks.",
        labels=["worker", "kind"],
    )
