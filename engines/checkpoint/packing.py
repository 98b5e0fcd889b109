"""Packs a Hugging Face checkpoint into the torch engine's artifact. Run as a process of its own::

    python -m engines.checkpoint.packing SOURCE DEST --precision bf16 --digest SHA256 --parent PID

The process is a job (``mooring.job``). Tensors stream through a bounded buffer and torch is not imported, so packing
takes little memory beside a serving engine. DEST appears whole or not at all.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.artifact import PLAIN_LAYOUT, Manifest
from engines.checkpoint.hf_files import StoredTensor, read_headers
from engines.checkpoint.layout import packed_layout, packed_tensors
from engines.checkpoint.model_config import ModelConfig, describe
from mooring.child_job import JobProgress, add_job_arguments, do_job
from mooring.errors import ArtifactError

__all__ = ["ENGINE", "MANIFEST_NAME", "PACKER_VERSION", "WEIGHTS_NAME", "pack", "packed_manifest"]

ENGINE = "torch"
PACKER_VERSION = 1  # raise it with any change of the packed tensors' names, order or bytes
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"

_CHUNK_ELEMENTS = 4 << 20
_STORED: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_PACKED: Mapping[str, np.dtype[Any]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp32": np.dtype(np.float32),
}


def pack(
    source: Path,
    dest: Path,
    precision: str,
    digest: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    layout: str = PLAIN_LAYOUT,
) -> None:
    """Writes ``dest`` from the checkpoint folder ``source``, or finds that it is there already.

    Several processes may pack the same ``dest`` at once: one does the work and the others wait for it.

    Args:
        precision: ``bf16``, ``fp32``, or ``auto`` for the checkpoint's own.
        digest: sha-256 of the version that ``source`` holds.
        on_progress: called with the bytes written so far and their total.
        layout: how the bytes are to lie; this packer writes the plain one.

    Raises:
        ArtifactError: the checkpoint cannot be packed so, or the disk cannot be written.
    """
    if layout != PLAIN_LAYOUT:
        raise ArtifactError(f"layout {layout!r} is not supported; supported is {PLAIN_LAYOUT}")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(dest.parent / f".{dest.name}.lock"):
            if packed_manifest(dest, digest) is None:
                shutil.rmtree(dest, ignore_errors=True)
                _pack_anew(source, dest, precision, digest, on_progress)
    except OSError as error:
        raise ArtifactError(f"cannot pack into {dest}: {error}") from error


def packed_manifest(dest: Path, digest: str) -> bytes | None:
    """The manifest of a complete artifact of this version at ``dest``; None if there is none."""
    try:
        text = (dest / MANIFEST_NAME).read_bytes()
        num_bytes = (dest / WEIGHTS_NAME).stat().st_size
        manifest = Manifest.from_json(text)
    except (FileNotFoundError, ArtifactError):
        return None
    found = (manifest.engine, manifest.packer_version, manifest.source_digest, manifest.num_bytes)
    return text if found == (ENGINE, PACKER_VERSION, digest, num_bytes) else None


def _pack_anew(
    source: Path, dest: Path, precision: str, digest: str, on_progress: Callable[[int, int], None]
) -> None:
    description = describe(source)
    precision = description.resolve(precision)
    config = ModelConfig.from_dict(description.config)
    entries, num_bytes = packed_layout(config, precision)
    manifest = Manifest(ENGINE, PACKER_VERSION, precision, digest, config.to_dict(), entries, num_bytes)
    # A fixed name, so that the next packer, which holds the lock, removes the leftovers of one that was
    # killed.
    partial = dest.parent / f".{dest.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with (partial / WEIGHTS_NAME).open("wb") as file:
            _write_weights(file, manifest, config, read_headers(source), on_progress)
            _flush_to_disk(file)
        with (partial / MANIFEST_NAME).open("wb") as file:
            file.write(manifest.to_json())
            _flush_to_disk(file)
        _sync_folder(partial)
        partial.rename(dest)
        _sync_folder(dest.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_weights(
    file: BinaryIO,
    manifest: Manifest,
    config: ModelConfig,
    headers: Mapping[str, StoredTensor],
    on_progress: Callable[[int, int], None],
) -> None:
    dtype = _PACKED[manifest.precision]
    for name, packed in packed_tensors(config).items():
        file.seek(manifest.tensors[name].offset)
        for source_name, _ in packed.sources:
            for values in _read_chunks(source_name, headers[source_name]):
                file.write(values.astype(dtype, copy=False).view(np.uint8).data)  # rounds to nearest even
                on_progress(file.tell(), manifest.num_bytes)


def _read_chunks(name: str, tensor: StoredTensor) -> Iterator[NDArray[Any]]:
    """The tensor's values as flat arrays of a bounded number of elements."""
    dtype = _STORED[tensor.dtype]
    for start in range(0, tensor.num_elements, _CHUNK_ELEMENTS):
        count = min(_CHUNK_ELEMENTS, tensor.num_elements - start)
        values = np.fromfile(tensor.file, dtype, count, offset=tensor.offset + start * dtype.itemsize)
        if len(values) != count:
            raise ArtifactError(f"{tensor.file.name} ends within {name}")
        yield values


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock between processes; the kernel drops it when its holder dies."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> int:
    """The command that the module's docstring describes."""
    parser = argparse.ArgumentParser(
        prog="python -m engines.checkpoint.packing", description="Pack a checkpoint."
    )
    parser.add_argument("source", type=Path, help="Hugging Face folder")
    parser.add_argument("dest", type=Path, help="folder to make")
    parser.add_argument("--precision", required=True, help="bf16, fp32 or auto")
    parser.add_argument("--digest", required=True, help="sha-256 of the version packed")
    parser.add_argument("--layout", default=PLAIN_LAYOUT, help="how the bytes are to lie")
    add_job_arguments(parser)
    args = parser.parse_args()

    def work(tell: JobProgress) -> None:
        report = partial(tell, "pack")
        pack(args.source, args.dest, args.precision, args.digest, report, args.layout)

    return do_job(args, work)


if __name__ == "__main__":
    sys.exit(main())
