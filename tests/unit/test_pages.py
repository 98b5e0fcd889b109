"""The pages for people: what they link to is there, and the index of docs/ names each of its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The names that headings of a page get where it is shown."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_index_names_each_file_once() -> None:
    rows = re.findall(r"^\| \[([\w.-]+)\]\(\1\) \| ", (DOCS / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(
        each.name for each in DOCS.iterdir() if each.is_file() and each.name != "README.md"
    )
