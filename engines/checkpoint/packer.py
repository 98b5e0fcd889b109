"""Makes sure that a packed artifact exists, from the server process: packing itself runs in another.

Packing takes long and a lot of memory traffic, so it has no place beside an event loop: a subprocess that
imports no torch does it (``engines.checkpoint.packing``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from engines.artifact import PLAIN_LAYOUT
from engines.checkpoint.model_config import describe
from engines.checkpoint.packing import PACKER_VERSION, WEIGHTS_NAME, packed_manifest
from memory_manager.ports import ArtifactRef
from mooring.child import Limits
from mooring.errors import ArtifactError
from mooring.job import Job, run_job
from mooring.units import GIB, MIB

__all__ = ["ensure_packed"]

# What honest checkpoints never need: the memory is for headers, since weights pass through a buffer; the rates are a
# tenth of those of a slow core and a slow disk.
_MEMORY_BYTES = 4 * GIB
_MIN_S = 600
_CPU_BYTES_PER_S = 10 * MIB
_BYTES_PER_S = 2 * MIB


async def ensure_packed(
    source: Path,
    digest: str,
    precision: str,
    packed_root: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    layout: str = PLAIN_LAYOUT,
) -> ArtifactRef:
    """The packed artifact of a version, packed now if it was not before.

    Concurrent calls for the same artifact, also from other processes, pack it once. A call that is
    cancelled ends its packing, and leaves nothing behind that a later one could mistake for the artifact.

    Args:
        source: the version's Hugging Face folder.
        digest: sha-256 of the version.
        precision: ``bf16``, ``fp32``, or ``auto`` for the checkpoint's own.
        packed_root: holds one folder for each digest, precision, layout and packer version.
        on_progress: called with the bytes written so far and their total.
        layout: how the bytes are to lie.

    Raises:
        ArtifactError: the checkpoint cannot be packed; the message says why.
    """
    if precision == "auto":
        precision = (await asyncio.to_thread(describe, source)).default_precision
    dest = packed_root / f"{digest[:16]}-{precision}-{layout}-v{PACKER_VERSION}"
    manifest_json = packed_manifest(dest, digest)
    if manifest_json is None and layout == PLAIN_LAYOUT:
        unnamed = packed_root / f"{digest[:16]}-{precision}-v{PACKER_VERSION}"
        manifest_json = _take_over(unnamed, dest, digest)
    if manifest_json is None:
        await _run_packer(source, dest, precision, layout, digest, on_progress)
        manifest_json = packed_manifest(dest, digest)
    if manifest_json is None:
        raise ArtifactError(f"{dest} does not hold the artifact that was just packed")
    weights_path = dest / WEIGHTS_NAME
    return ArtifactRef(dest.name, weights_path, weights_path.stat().st_size, manifest_json, layout)


def _take_over(unnamed: Path, dest: Path, digest: str) -> bytes | None:
    """Gives an artifact from before layouts had names its present name; returns its manifest, None if there is no
    whole one."""
    if packed_manifest(unnamed, digest) is not None:
        with contextlib.suppress(OSError):  # another process did, or the artifact is made anew
            unnamed.rename(dest)
    return packed_manifest(dest, digest)


async def _run_packer(
    source: Path,
    dest: Path,
    precision: str,
    layout: str,
    digest: str,
    on_progress: Callable[[int, int], None],
) -> None:
    source_bytes = await asyncio.to_thread(_weights_bytes, source)
    flags = ("--precision", precision, "--digest", digest, "--layout", layout)
    job = Job(
        "the packer",
        "engines.checkpoint.packing",
        (str(source), str(dest), *flags),
        lost=ArtifactError,
        limits=Limits(_MEMORY_BYTES, _MIN_S + source_bytes // _CPU_BYTES_PER_S),
        max_s=_MIN_S + source_bytes / _BYTES_PER_S,
    )
    await run_job(job, lambda stage, done, total: on_progress(done, total))


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
