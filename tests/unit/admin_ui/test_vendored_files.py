"""Vendored libraries: each is what the lock says, and nothing comes from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT
from support.programs import need_program

from admin_ui.vendoring import FILES, LOCK, VENDOR, rewritten, vendored

STATIC = VENDOR.parent
TYPESCRIPT = "typescript@7.0.2"
LOCKED = json.loads(LOCK.read_text())
IMPORT = re.compile(r"""(?:\bfrom\s*|\bimport\s*\(?\s*)["']([^"']+)["']""")


def test_the_lock_names_each_vendored_file() -> None:
    assert sorted(LOCKED) == sorted(each.name for each in FILES)
    there = {path.name for path in VENDOR.iterdir() if path.is_file()}
    assert there == set(LOCKED)


@pytest.mark.parametrize("name", sorted(LOCKED))
def test_a_vendored_file_is_as_it_was_fetched_and_has_its_licence(name: str) -> None:
    row = LOCKED[name]
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == row["sha256"]
    licence = (VENDOR / row["licence_file"]).read_text()
    word = {"MIT": "MIT", "Apache-2.0": "Apache License", "OFL-1.1": "SIL Open Font License"}[row["licence"]]
    assert word in licence or "Permission is hereby granted" in licence


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.js")), ids=lambda path: path.name)
def test_modules_import_files_that_are_there_and_nothing_else(path: Path) -> None:
    text = path.read_text()
    for target in IMPORT.findall(text) if path.name != "uplot.js" else ():
        assert target.startswith("."), target
        assert (path.parent / target).resolve().is_file(), target


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.css")), ids=lambda path: path.name)
def test_styles_ask_nobody_else(path: Path) -> None:
    for target in re.findall(r'url\(["\']?([^)"\']+)', path.read_text()):
        assert (path.parent / target).is_file(), target


def test_what_is_rewritten_are_imports_of_vendored_packages_alone() -> None:
    assert rewritten(b'import{a}from"preact";"from"+b', "\nexport default b;") == (
        b'import{a}from"./preact.js";"from"+b\nexport default b;'
    )
    with pytest.raises(KeyError):
        rewritten(b'import a from "elsewhere";', "")


@pytest.mark.slow
def test_the_registry_still_has_what_the_lock_says() -> None:
    """Fetches the packages by npm."""
    need_program("npm", "npm")
    files, lock = vendored()
    assert json.loads(lock) == LOCKED
    for name, body in files.items():
        assert (VENDOR / name).read_bytes() == body


@pytest.mark.slow
def test_the_pages_hold_to_their_types(tmp_path: Path) -> None:
    """Fetches TypeScript by npm, and checks the types that the pages' comments declare."""
    npm = need_program("npm", "npm")
    subprocess.run(
        [npm, "install", "--silent", "--prefix", tmp_path, TYPESCRIPT], check=True, capture_output=True
    )
    checker = tmp_path / "node_modules" / ".bin" / "tsc"
    checked = subprocess.run(
        [checker, "-p", ROOT / "admin_ui" / "tsconfig.json"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
