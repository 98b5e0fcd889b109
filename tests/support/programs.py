"""Programs of Debian packages that tests run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ["need_program"]


def need_program(name: str, package: str, *folders: Path) -> Path:
    """Where a program is: in ``folders`` or on the path.

    Without it the test is skipped and says what to install; in CI it fails, since ``make test`` installs the
    packages there and a test that never ran would look like one that passed.
    """
    search = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=search)
    if found is not None:
        return Path(found)
    reason = f"there is no {name} here: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
