"""Names of classes: each means one thing wherever it is read, and KV is written in capitals."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from support.paths import ROOT
from support.sources import parsed, sources

PROTO_NAME = re.compile(r"^\s*(?:message|enum|service)\s+(\w+)", re.MULTILINE)


def classes() -> dict[str, list[str]]:
    """The files that define a class, by its name."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path))
    return found


def test_a_public_name_stands_once() -> None:
    twins = {name: files for name, files in classes().items() if len(files) > 1 and name[0] != "_"}
    assert len(classes()) > 300
    assert twins == {}


def test_kv_is_written_in_capitals() -> None:
    names = list(classes())
    for path in (ROOT / "proto").rglob("*.proto"):
        names += PROTO_NAME.findall(path.read_text())
    assert len(names) > 300
    assert [name for name in names if "Kv" in name] == []
