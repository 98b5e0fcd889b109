"""Writes the locks of the container images: every package by version and hash, for Linux on x86-64 and the images'
Python. torch is not in them: each image takes its own build of it, by its own version.

    python deploy/lock.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
EXTRAS = {"cpu": ("postgresql",), "cuda": ("gpu", "postgresql")}


def wanted(extras: Sequence[str]) -> list[str]:
    """Requirements of the project with some of its extras, torch left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [
        *project["dependencies"],
        *(each for name in extras for each in project["optional-dependencies"][name]),
    ]
    return [each for each in found if not re.match(r"torch\b", each)]


def locked(requirements: Sequence[str]) -> list[str]:
    """Lines of a lock: the versions that pip chooses for an image, with the hash of each file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
                *("--only-binary", ":all:", "--python-version", PYTHON, "--target", folder),
                *(word for platform in PLATFORMS for word in ("--platform", platform)),
                *("--report", str(report), *requirements),
            ],
            check=True,
        )
        packages = json.loads(report.read_text())["install"]
    lines = []
    for package in packages:
        metadata, archive = package["metadata"], package["download_info"]["archive_info"]
        name = re.sub(r"[-_.]+", "-", metadata["name"]).lower()
        lines.append(f"{name}=={metadata['version']} --hash=sha256:{archive['hashes']['sha256']}")
    return sorted(lines)


def main() -> None:
    for image, extras in EXTRAS.items():
        lines = ["# Made by `make lock`; torch apart. Python 3.12, Linux on x86-64.", *locked(wanted(extras))]
        (ROOT / "deploy" / f"requirements-{image}.lock").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
