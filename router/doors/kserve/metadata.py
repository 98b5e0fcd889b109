"""Metadata of the server and its models in the KServe v2 protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mooring import __version__
from router.doors.kserve.fields import FIELDS
from router.doors.kserve.outputs import OUTPUTS
from router.request.served_model import ServedModel

__all__ = [
    "EXTENSIONS",
    "SERVER_NAME",
    "SERVER_VERSION",
    "ModelMetadata",
    "TensorMetadata",
    "model_config",
    "model_metadata",
]

SERVER_NAME = "mooring"
SERVER_VERSION = __version__
EXTENSIONS = (
    *("model_repository", "model_repository(unload_dependents)", "model_configuration", "statistics"),
    *("binary_tensor_data", "parameters", "generate"),
)


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A tensor's name, datatype and shape; -1 means any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model as clients see it. ``versions`` holds only the version that is served."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def model_metadata(model: ServedModel) -> ModelMetadata:
    """The metadata of a model that is served."""
    return ModelMetadata(
        name=model.name,
        versions=(str(model.version),),
        platform=_platform(model),
        inputs=tuple(
            TensorMetadata(field.name, field.datatypes[0], (-1,) if field.is_list else (1,))
            for field in FIELDS.values()
            if field.datatypes and not field.refused
        ),
        outputs=tuple(TensorMetadata(*output) for output in OUTPUTS.values()),
    )


def model_config(model: ServedModel) -> Mapping[str, Any]:
    """A model's configuration in the JSON form of Triton's ``ModelConfig``."""
    metadata = model_metadata(model)
    return {
        "name": model.name,
        "platform": metadata.platform,
        "backend": model.engine,
        "max_batch_size": 0,
        "input": [
            {**_tensor_config(tensor), "optional": tensor.name != "text_input"} for tensor in metadata.inputs
        ],
        "output": [_tensor_config(tensor) for tensor in metadata.outputs],
        "model_transaction_policy": {"decoupled": True},
        "parameters": {"max_model_len": {"string_value": str(model.max_model_len)}},
    }


def _platform(model: ServedModel) -> str:
    return f"mooring_{model.engine}"


def _tensor_config(tensor: TensorMetadata) -> dict[str, Any]:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(tensor.shape)}
