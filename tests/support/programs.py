"""Programs of Debian packages that tests run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ["need_program"]


def need_program(name: str, package: str, *folders: Path) -> Path:
    """Where a program is: in ``folders`` or on the path. Without it the test fails and says what to install;
    ``make test`` installs it by itself where it may."""
    search = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=search)
    if found is None:
        pytest.fail(f"there is no {name} here: apt-get install {package}")
    return Path(found)
