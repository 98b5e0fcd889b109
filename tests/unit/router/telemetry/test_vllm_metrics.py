"""What vLLM's dashboards ask Prometheus for, found in our answer: names, labels and buckets."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.api import SamplingParams
from router.request.request import GenerationRequest
from router.telemetry.metrics import Gauges, Metrics, ModelGauges
from router.telemetry.waits import Waited

# Of the dashboards in vLLM's repository (examples/observability), but for what docs/metrics.md leaves out.
OF_REQUESTS = (
    *("vllm:e2e_request_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_sum"),
    *("vllm:e2e_request_latency_seconds_count", "vllm:time_to_first_token_seconds_bucket"),
    *("vllm:inter_token_latency_seconds_bucket", "vllm:time_per_output_token_seconds_bucket"),
    *("vllm:time_per_output_token_seconds_sum", "vllm:time_per_output_token_seconds_count"),
    *("vllm:request_time_per_output_token_seconds_bucket", "vllm:request_queue_time_seconds_sum"),
    *("vllm:request_prefill_time_seconds_sum", "vllm:request_decode_time_seconds_sum"),
    *("vllm:request_inference_time_seconds_bucket", "vllm:request_prompt_tokens_bucket"),
    *("vllm:request_generation_tokens_bucket", "vllm:request_max_num_generation_tokens_sum"),
    *("vllm:request_prefill_kv_computed_tokens_bucket", "vllm:request_params_n_bucket"),
    *("vllm:request_params_max_tokens_bucket", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    *("vllm:prompt_tokens_by_source_total", "vllm:request_success_total"),
)
OF_MODELS = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason"),
    *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "vllm:num_preemptions_total"),
    *("vllm:engine_sleep_state", "vllm:iteration_tokens_total_bucket"),
)
LABELS = {
    "vllm:num_requests_waiting_by_reason": {"reason": {"capacity", "deferred"}},
    "vllm:engine_sleep_state": {"sleep_state": {"awake", "weights_offloaded", "discard_all"}},
    "vllm:request_success_total": {"finished_reason": {"stop", "length", "abort", "error"}},
    "vllm:prompt_tokens_by_source_total": {"source": {"local_compute"}},
}

Samples = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def samples() -> Samples:
    """The labels of each series, by its name, once a request was served."""
    metrics = Metrics(lambda: Gauges({"m": ModelGauges(1, 2, 3, 0.5)}), clock=lambda: 5.0)
    request = metrics.request(
        GenerationRequest("r", "m", (1, 2, 3), SamplingParams(), arrival_s=1.0), Waited(), None
    )
    request.tokens(0, 1, began_s=2.0)
    request.tokens(0, 1)
    request.finished(0, "stop", 2)
    request.end()
    metrics.observe_step("m/0", 4)
    found: Samples = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.mark.parametrize("name", [*OF_REQUESTS, *OF_MODELS])
def test_a_dashboard_finds_the_series_by_model_and_engine(samples: Samples, name: str) -> None:
    for labels in samples[name]:
        assert (labels["model_name"], labels["engine"]) == ("m", "0")
        assert ("tenant" in labels) is (name in OF_REQUESTS)
    for label, values in LABELS.get(name, {}).items():
        assert {labels[label] for labels in samples[name]} == values


@pytest.mark.parametrize(
    ("name", "num_buckets", "some"),
    [
        ("time_to_first_token_seconds", 22, {"0.001", "0.06", "0.75", "7.5", "160.0", "2560.0"}),
        ("inter_token_latency_seconds", 19, {"0.01", "0.025", "0.15", "0.75", "80.0"}),
        ("e2e_request_latency_seconds", 21, {"0.3", "0.8", "15.0", "1920.0", "7680.0"}),
        ("request_queue_time_seconds", 21, {"0.3", "7680.0"}),
        ("iteration_tokens_total", 13, {"1.0", "8.0", "16384.0"}),
        ("request_params_n", 5, {"1.0", "2.0", "20.0"}),
    ],
)
def test_buckets_are_vllms(samples: Samples, name: str, num_buckets: int, some: set[str]) -> None:
    ends = [labels["le"] for labels in samples[f"vllm:{name}_bucket"]]
    assert len(ends) == num_buckets + 1
    assert {*some, "+Inf"} <= set(ends)
