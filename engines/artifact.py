"""The packed artifact: what the packer writes, the host cache copies and the engine reads.

A packed artifact is two files in the store: ``weights.bin``, every tensor in the layout that the engine's
kernels want, each at an aligned offset, in one contiguous run of bytes; and ``manifest.json``, which names
the tensors and their places. So loading only reads. Nothing here imports torch, so that the server process
can read manifests too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mooring.errors import ArtifactError

__all__ = ["ALIGNMENT_BYTES", "FORMAT_VERSION", "PLAIN_LAYOUT", "Manifest", "TensorEntry"]

FORMAT_VERSION = 1
# Alignment of each tensor in weights.bin: a cache line on every CPU, a sector on every GPU.
ALIGNMENT_BYTES = 256
# Matrices lie row by row as in the checkpoint: every CPU and every GPU reads them so today. A kernel that wants them
# otherwise gets a layout with a name of its own; layouts whose bytes are equal share one.
PLAIN_LAYOUT = "plain"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: ``dtype`` is torch's name without the prefix (``"bfloat16"``), ``offset`` is in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a packed artifact.

    Attributes:
        engine: the engine whose layout this is, ``"torch"``.
        packer_version: version of that engine's packer; another version means packing again.
        precision: the variant, ``"fp32"`` or ``"bf16"``.
        source_digest: sha-256 of the version that it was packed from.
        config: the model's configuration in the engine's own normal form.
        tensors: tensors by the engine's own parameter names.
        num_bytes: size of ``weights.bin``.
        layout: how the tensors' bytes lie; artifacts of before there were several are plain.
    """

    engine: str
    packer_version: int
    precision: str
    source_digest: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    num_bytes: int
    format_version: int = FORMAT_VERSION
    layout: str = PLAIN_LAYOUT

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Parses ``manifest.json``.

        Raises:
            ArtifactError: the text is no manifest, or has another format version.
        """
        try:
            raw = json.loads(text)
            version = raw["format_version"]
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"packed artifact has format {version}, this build reads {FORMAT_VERSION}: pack it again"
                )
            tensors = {
                name: TensorEntry(t["dtype"], tuple(t["shape"]), t["offset"], t["num_bytes"])
                for name, t in raw["tensors"].items()
            }
            return cls(**{**raw, "tensors": tensors})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"packed artifact's manifest is unreadable: {error!r}") from error
