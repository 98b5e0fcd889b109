"""Makes sure that a packed artifact exists, from the server process: packing itself runs in another.

Packing takes long and a lot of memory traffic, so it has no place beside an event loop: a subprocess that
imports no torch does it (``engines.checkpoint.packing``) and tells on its standard output how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

from engines.artifact import PLAIN_LAYOUT
from engines.checkpoint.model_config import describe
from engines.checkpoint.packing import PACKER_VERSION, WEIGHTS_NAME, packed_manifest
from memory_manager.ports import ArtifactRef
from mooring.errors import ArtifactError

__all__ = ["ensure_packed"]

_KEPT_STDERR_CHARS = 500


async def ensure_packed(
    source: Path,
    digest: str,
    precision: str,
    packed_root: Path,
    on_progress: Callable[[int, int], None] | None = None,
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
    on_progress: Callable[[int, int], None] | None,
) -> None:
    command = [sys.executable, "-m", "engines.checkpoint.packing", str(source), str(dest)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--precision", precision, "--digest", digest, "--layout", layout),
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        reason, stderr = await asyncio.gather(
            _follow(process.stdout, on_progress or (lambda done, total: None)), process.stderr.read()
        )
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        tail = stderr.decode(errors="replace").strip()[-_KEPT_STDERR_CHARS:]
        raise ArtifactError(reason or f"the packer ended with status {code}: {tail or 'it said nothing'}")


async def _follow(stdout: asyncio.StreamReader, on_progress: Callable[[int, int], None]) -> str | None:
    """Reports progress until the packer closes its output; returns the error it named, if any."""
    reason = None
    async for line in stdout:
        message = json.loads(line)
        if "error" in message:
            reason = str(message["error"])
        else:
            on_progress(message["done_bytes"], message["total_bytes"])
    return reason
