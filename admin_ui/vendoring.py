"""Fetches the libraries of the pages from the npm registry: ``python -m admin_ui.vendoring``.

Nothing is built. A file is taken as its package has it, and its imports of other packages are turned into those of
the files beside it, since a page under our Content-Security-Policy can have no import map. ``VENDOR.lock`` notes from
what each file came and what it is now.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LOCK", "LOCK_NAME", "VENDOR", "VendoredFile", "fetch", "main"]

VENDOR = Path(__file__).with_name("static") / "vendor"
LOCK_NAME = "VENDOR.lock"
LOCK = VENDOR.parent / LOCK_NAME

_IMPORT = re.compile(r'(\bfrom\s*)"([^"./][^"]*)"')
_FONT = b"wOF2"
_SOURCE_MAP = re.compile(rb"\n?//# sourceMappingURL=\S+\s*$")


@dataclass(frozen=True, slots=True)
class VendoredFile:
    """A file to vendor.

    Attributes:
        name: its name here.
        package: the package that has it, with its version.
        path: its path in the package.
        end: what is put at its end.
    """

    name: str
    package: str
    path: str
    end: str = ""


FILES: Sequence[VendoredFile] = (
    VendoredFile("preact.js", "preact@11.2.0", "dist/preact.mjs"),
    VendoredFile("preact-hooks.js", "preact@11.2.0", "hooks/dist/hooks.mjs"),
    VendoredFile("signals-core.js", "@preact/signals-core@1.14.5", "dist/signals-core.mjs"),
    VendoredFile("signals.js", "@preact/signals@2.11.4", "dist/signals.mjs"),
    VendoredFile("htm.js", "htm@3.1.1", "dist/htm.mjs"),
    # Its ES module is not minified and three times as large.
    VendoredFile("uplot.js", "uplot@1.6.32", "dist/uPlot.iife.min.js", "\nexport default uPlot;\n"),
    VendoredFile("uplot.css", "uplot@1.6.32", "dist/uPlot.min.css"),
    VendoredFile("inter.woff2", "@fontsource-variable/inter@5.3.0", "files/inter-latin-wght-normal.woff2"),
)
"""All that is vendored; a licence comes along with each package."""

_BESIDE: Mapping[str, str] = {
    "preact": "./preact.js",
    "preact/hooks": "./preact-hooks.js",
    "@preact/signals-core": "./signals-core.js",
}


def fetch(package: str, folder: Path) -> Mapping[str, bytes]:
    """The files of a package, by their path in it, as npm fetches and checks it."""
    packed = subprocess.run(
        ["npm", "pack", "--json", package], cwd=folder, check=True, capture_output=True, text=True
    )
    with tarfile.open(folder / json.loads(packed.stdout)[0]["filename"]) as archive:
        return {
            member.name.removeprefix("package/"): file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        }


def rewritten(body: bytes, end: str) -> bytes:
    """A file as it is vendored.

    Raises:
        KeyError: it imports a package that is not vendored.
    """
    if body.startswith(_FONT):
        return body
    text = _SOURCE_MAP.sub(b"", body).decode()
    return (_IMPORT.sub(lambda found: f'{found[1]}"{_BESIDE[found[2]]}"', text) + end).encode()


def vendored() -> tuple[Mapping[str, bytes], str]:
    """All vendored files by their path below ``vendor/``, licences included, and the lock."""
    files: dict[str, bytes] = {}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        packages = {each.package: fetch(each.package, Path(folder)) for each in FILES}
    for each in FILES:
        found = packages[each.package]
        name, _, version = each.package.rpartition("@")
        licence = f"LICENSES/{name.strip('@').replace('/', '-')}.txt"
        files[licence] = found["LICENSE"]
        files[each.name] = rewritten(found[each.path], each.end)
        rows[each.name] = {
            "package": name,
            "version": version,
            "path": each.path,
            "licence": json.loads(found["package.json"])["license"],
            "licence_file": licence,
            "package_sha256": hashlib.sha256(found[each.path]).hexdigest(),
            "sha256": hashlib.sha256(files[each.name]).hexdigest(),
        }
    return files, json.dumps(rows, indent=2) + "\n"


def main() -> None:
    """Writes the files and the lock."""
    files, lock = vendored()
    for name, body in files.items():
        path = VENDOR / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    LOCK.write_text(lock)


if __name__ == "__main__":
    main()
