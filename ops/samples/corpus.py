"""The text that the samples learn from: Python's own standard library, which every machine has."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mooring.errors import ConfigurationError

__all__ = ["Corpus", "read_corpus"]

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",  # tables
        "idle_test",
        "lib2to3",  # grammar tables are pickled, and fixers read like no other Python
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
_PROSE_FILE = "pydoc_data/topics.py"  # the language reference as strings: prose, no code
_MAX_FILE_BYTES = 300_000  # longer files are generated tables
_MIN_TOTAL_BYTES = 2_000_000
_MIN_PROSE_WORDS = 12


@dataclass(frozen=True, slots=True)
class Corpus:
    """Source files of the standard library, in the order of their names.

    Attributes:
        files: name relative to the library's folder, and text, of each file.
        digest: sha-256 over names and texts.
    """

    files: tuple[tuple[str, str], ...]
    digest: str

    def code(self) -> Iterator[str]:
        """The text of every file that is code."""
        return (text for name, text in self.files if name != _PROSE_FILE)

    def prose(self) -> Iterator[str]:
        """The English of each file: its docstrings and other long strings, as paragraphs."""
        for _, text in self.files:
            passages = [_dedent(string) for string in _long_strings(text)]
            if passages:
                yield "\n\n".join(passages)


def read_corpus(folder: Path | None = None) -> Corpus:
    """Reads the library: about nine megabytes in some tens of milliseconds.

    Args:
        folder: the library's folder; by default this interpreter's own.

    Raises:
        ConfigurationError: there is too little source (a stripped interpreter).
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    files = tuple((path.relative_to(root).as_posix(), _read(path)) for path in _source_files(root))
    total_bytes = sum(len(text) for _, text in files)
    if total_bytes < _MIN_TOTAL_BYTES:
        raise ConfigurationError(
            f"the standard library at {root} has {total_bytes} bytes of source and the sample models "
            f"need {_MIN_TOTAL_BYTES}: use a Python that ships its sources"
        )
    digest = hashlib.sha256()
    for name, text in files:
        digest.update(f"{name}\0{len(text)}\0{text}".encode("utf-8", "surrogatepass"))
    return Corpus(files, digest.hexdigest())


def _source_files(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    prose = root / _PROSE_FILE
    return sorted(path for path in found if path == prose or path.stat().st_size <= _MAX_FILE_BYTES)


def _read(path: Path) -> str:
    with tokenize.open(path) as file:  # honours the file's coding cookie
        return file.read()


def _long_strings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if len(words) >= _MIN_PROSE_WORDS:
                yield node.value


def _dedent(text: str) -> str:
    """Strips every line's indentation, and tables drawn with symbols along with it."""
    lines = (line.strip() for line in text.strip().splitlines())
    return "\n".join(line for line in lines if not line or any(letter.isalpha() for letter in line))
