"""Strangers' files are read in a child: it answers, or dies of its limits with a reason, and this process goes on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from support.databases import ENGINES
from support.gguf_files import Source, write_gguf
from support.small_checkpoint import write_checkpoint

from engines.checkpoint.model_config import describe
from model_registry.database import open_database
from model_registry.importing.examination import examine_folder
from model_registry.importing.hub import Hub
from model_registry.importing.importer import Importer
from model_registry.progress import no_progress
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import ArtifactError, ShuttingDownError
from mooring.server.file_reader import FileReader

pytestmark = pytest.mark.integration

TEXT_STAGE = "tokenizer and chat template"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m")


@pytest.fixture
def reader() -> FileReader:
    return FileReader("null", text_cpu_s=2)


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "file_reading" in " ".join(each.cmdline())]


def test_the_child_finds_what_would_be_found_here(folder: Path, reader: FileReader) -> None:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    stages: list[str] = []
    found = reader.examine(folder, lambda stage, done, total: stages.append(stage))
    assert found.to_json() == json.loads(json.dumps(examine_folder(folder, describe).to_json())) | {
        "names": found.names
    }
    assert found.license == "apache-2.0"
    assert list(dict.fromkeys(stages)) == ["check", TEXT_STAGE]
    assert children() == []


def test_the_child_imports_nothing_that_only_the_server_needs() -> None:
    """Each registration starts two of them; what they import is most of what they cost."""
    source = "import sys, mooring.server.file_reading as _; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert not {"asyncio", "numpy", "importlib.metadata"} & set(run.stdout.split())


HOSTILE_TEMPLATES = {
    "a number without end": ("{{ 9 ** (9 ** 9) }}", "too large"),
    "loops without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        f"all the processor time that it may .at stage '{TEXT_STAGE}'",
    ),
    "a text of gigabytes": ("{% set s = 'x' * 16000000000 %}", "too large"),
    "lists of gigabytes": (
        "{% set s = namespace(l=[]) %}{% for a in range(99999) %}{% set s.l = s.l + [messages[0].content * 999999] %}"
        "{% endfor %}",
        "too much memory|all the processor time",
    ),
    "a long text": ("{{ 'x ' * 600000 }}", "of one sentence"),
    "no template": ("{% for %}", "not a valid template"),
}


@pytest.mark.parametrize("case", HOSTILE_TEMPLATES)
def test_a_hostile_chat_template_is_refused_with_the_reason(
    case: str, folder: Path, reader: FileReader
) -> None:
    template, reason = HOSTILE_TEMPLATES[case]
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ArtifactError, match=reason):
        reader.examine(folder, no_progress)
    assert children() == []


def test_a_template_that_refuses_is_no_fault_of_the_model(folder: Path, reader: FileReader) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only with tools') }}")
    assert "chat_template.jinja" in reader.examine(folder, no_progress).names


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        ({"model": {}}, r"tokenizer\.json of the model is broken"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 31}, "merges": [["a", "b"]]}}, r"tokenizer\.json"),
    ],
)
def test_a_broken_tokenizer_is_refused(
    tokenizer: dict[str, object], reason: str, folder: Path, reader: FileReader
) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ArtifactError, match=reason):
        reader.examine(folder, no_progress)


def test_what_the_child_complains_of_goes_to_the_log(
    folder: Path, reader: FileReader, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that nobody has is a fault of ours: the child dies of it with all it knows."""
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ArtifactError, match="ended with status 2") as caught,
    ):
        FileReader("no-engine").examine(folder, no_progress)
    assert any("invalid choice" in message for message in caplog.messages)
    assert "invalid choice" not in caught.value.message


def test_a_gguf_file_is_converted_in_the_child(tmp_path: Path, reader: FileReader) -> None:
    source = Source()
    path = write_gguf(tmp_path / "m.gguf", source)
    seen: list[tuple[str, int, int]] = []
    reader.convert_gguf(path, tmp_path / "converted", lambda *report: seen.append(report))
    made = load_file(tmp_path / "converted" / "model.safetensors")
    assert set(made) == set(source.weights)
    name = "model.embed_tokens.weight"
    assert (made[name].astype(np.float32) == source.weights[name]).all()
    assert seen[-1][0] == "convert"
    assert seen[-1][1] == seen[-1][2] > 0
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"m\.gguf is truncated or corrupt"):
        reader.convert_gguf(path, tmp_path / "again", no_progress)
    assert not (tmp_path / "again").exists()


def test_a_caller_that_stops_ends_the_child(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 9 ** (9 ** 9) }}")
    stopping = threading.Event()

    def report(stage: str, done: int, total: int) -> None:
        if stage == TEXT_STAGE:
            stopping.set()
        if stopping.is_set():
            raise ShuttingDownError("the server shut down")

    with pytest.raises(ShuttingDownError):
        FileReader("null").examine(folder, report)
    assert children() == []


def test_nothing_of_a_refused_source_is_kept(tmp_path: Path, folder: Path, reader: FileReader) -> None:
    registry = Registry(open_database(f"sqlite:///{tmp_path}/registry.db"), ENGINES)
    store = ArtifactStore(tmp_path / "store")
    importer = Importer(store, registry, reader, Hub(), tmp_path / "downloads")
    version = importer.register("m", str(folder))
    assert version.description["vocab_size"] > 0
    (folder / "chat_template.jinja").write_text("{{ 9 ** (9 ** 9) }}")
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 45)
    for source in (folder, path):
        with pytest.raises(ArtifactError):
            importer.register("n", str(source))
    assert [each.name for each in registry.list_models()] == ["m"]
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert len(list((tmp_path / "store" / "artifacts").iterdir())) == 1


def test_the_server_has_no_reader_of_gguf_files_and_waits_for_no_client_of_hubs() -> None:
    code = "import sys, mooring.server.server; sys.exit(bool({'gguf', 'huggingface_hub'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
