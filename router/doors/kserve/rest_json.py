"""Metadata, index and statistics as the JSON of KServe v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.doors.kserve.metadata import (
    EXTENSIONS,
    SERVER_NAME,
    SERVER_VERSION,
    ModelMetadata,
    TensorMetadata,
)
from router.doors.kserve.repository import IndexEntry
from router.doors.kserve.statistics import Duration, ModelStatistics

__all__ = ["index_json", "metadata_json", "server_json", "statistics_json"]


def server_json() -> dict[str, Any]:
    """The server's metadata."""
    return {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS}


def metadata_json(model: ModelMetadata) -> dict[str, Any]:
    """A model's metadata."""
    return {
        "name": model.name,
        "versions": model.versions,
        "platform": model.platform,
        "inputs": [_tensor(each) for each in model.inputs],
        "outputs": [_tensor(each) for each in model.outputs],
    }


def index_json(entries: Sequence[IndexEntry]) -> list[dict[str, str]]:
    """The repository's index."""
    return [
        {"name": each.name, "version": each.version, "state": each.state, "reason": each.reason}
        for each in entries
    ]


def statistics_json(models: Sequence[ModelStatistics]) -> dict[str, Any]:
    """The models' statistics. Counts of things that do not happen here, such as hits of a response cache,
    stay at 0."""
    return {
        "model_stats": [
            {
                "name": each.name,
                "version": each.version,
                "last_inference": each.last_inference_ms,
                "inference_count": each.inference_count,
                "execution_count": each.inference_count,
                "inference_stats": {
                    "success": _duration(each.success),
                    "fail": _duration(each.fail),
                    "queue": _duration(each.queue),
                    "compute_input": _duration(Duration()),
                    "compute_infer": _duration(each.compute_infer),
                    "compute_output": _duration(Duration()),
                    "cache_hit": _duration(Duration()),
                    "cache_miss": _duration(Duration()),
                },
                "response_stats": {},
                "batch_stats": [],
                "memory_usage": [],
            }
            for each in models
        ]
    }


def _tensor(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.total_ns}
