"""From a source to a version, and out again with the files."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.databases import ENGINES

from model_registry.database import open_database
from model_registry.importing.examination import Examination, examine_folder
from model_registry.importing.gguf_import import convert_gguf
from model_registry.importing.hub import Hub
from model_registry.importing.importer import Importer
from model_registry.progress import Progress
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import ArtifactError, ConflictError, InvalidRequestError, NotFoundError


@dataclass(frozen=True)
class Description:
    """What an engine would say."""

    architecture: str = "llama"
    num_parameters: int = 6
    vocab_size: int = 3
    max_model_len: int = 128
    checkpoint_dtype: str = "F32"
    default_precision: str = "fp32"
    eos_token_ids: tuple[int, ...] = (2,)
    config: dict[str, Any] = field(default_factory=lambda: {"hidden_size": 2})
    generation_config: dict[str, Any] = field(default_factory=dict)


def inspect(folder: Path) -> Description:
    if "mamba" in (folder / "config.json").read_text():
        raise ArtifactError("architecture mamba is not supported")
    return Description()


class Reader:
    """Reads in this process; the server's own does so in another."""

    def examine(self, folder: Path, progress: Progress) -> Examination:
        return examine_folder(folder, inspect)

    def convert_gguf(self, source: Path, destination: Path, progress: Progress) -> None:
        convert_gguf(source, destination, progress)


@dataclass
class Workplace:
    registry: Registry
    store: ArtifactStore
    importer: Importer
    folder: Path


@pytest.fixture
def work(tmp_path: Path) -> Workplace:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: none\n")
    save_file({"a": np.zeros((2, 3), dtype=np.float32)}, folder / "model.safetensors")
    registry = Registry(open_database(f"sqlite:///{tmp_path}/registry.db"), ENGINES)
    store = ArtifactStore(tmp_path / "store")
    importer = Importer(store, registry, Reader(), Hub(), tmp_path / "downloads")
    return Workplace(registry, store, importer, folder)


def test_a_folder_becomes_a_version(work: Workplace) -> None:
    version = work.importer.register("m", str(work.folder))
    assert work.registry.get_version("m") == version
    assert (work.store.get(version.digest).path / "model.safetensors").is_file()
    assert version.source == str(work.folder)
    assert version.license == "apache-2.0"
    assert version.architecture == "llama"
    assert version.description["default_precision"] == "fp32"
    assert version.description["eos_token_ids"] == [2]
    assert work.importer.register("m", str(work.folder)) == version


def test_what_the_engine_cannot_run_never_enters_the_store(work: Workplace, tmp_path: Path) -> None:
    (work.folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ArtifactError, match="mamba"):
        work.importer.register("m", str(work.folder))
    assert list((tmp_path / "store" / "artifacts").iterdir()) == []
    assert work.registry.list_models() == []


def test_bad_names_and_sources(work: Workplace, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        work.importer.register("no spaces", str(work.folder))
    with pytest.raises(ArtifactError, match="nothing at"):
        work.importer.register("m", str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match="not a GGUF file"):
        work.importer.register("m", str(work.folder / "config.json"))
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_files_go_with_the_last_version_that_has_them(work: Workplace, tmp_path: Path) -> None:
    digest = work.importer.register("one", str(work.folder)).digest
    work.importer.register("two", str(work.folder))
    deployment = work.registry.create_deployment("d", "two")
    packed = tmp_path / "store" / "packed" / "packed-key"
    packed.mkdir()
    work.registry.set_packed(deployment.variant.id, "packed-key", 0)

    work.importer.delete_version("one", 1)
    assert work.store.get(digest).path.is_dir()
    with pytest.raises(ConflictError):
        work.importer.delete_version("two", 1)
    work.registry.delete_deployment("d")
    work.importer.delete_version("two", 1)
    with pytest.raises(NotFoundError):
        work.store.get(digest)
    assert not packed.exists()


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "~nobody-has-this-name/model"])
def test_a_source_that_cannot_even_be_looked_up_is_refused(work: Workplace, source: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be looked up"):
        work.importer.register("m", source)


def test_a_model_goes_with_all_its_versions_or_with_none(work: Workplace) -> None:
    for source in ("{}", '{"changed": true}'):
        (work.folder / "config.json").write_text(source)
        work.importer.register("m", str(work.folder))
    work.registry.create_deployment("m", "m", 2)
    versions = work.registry.list_versions("m")
    with pytest.raises(ConflictError, match="version 2"):
        work.importer.delete_model("m")
    assert work.registry.list_versions("m") == versions
    assert all(work.store.get(each.digest).path.is_dir() for each in versions)
    work.registry.delete_deployment("m")
    work.importer.delete_model("m")
    assert work.registry.list_models() == []
    for version in versions:
        with pytest.raises((ArtifactError, NotFoundError)):
            work.store.get(version.digest)


def test_a_delete_beside_a_registration_of_the_same_bytes_takes_no_files_away(work: Workplace) -> None:
    work.importer.register("seed", str(work.folder))
    failures: list[Exception] = []

    def churn(name: str) -> None:
        try:
            for _ in range(8):
                version = work.importer.register(name, str(work.folder))
                assert (work.store.get(version.digest).path / "model.safetensors").is_file()
                work.importer.delete_version(name, version.number)
        except Exception as error:  # handed to the test's own thread
            failures.append(error)

    work.importer.delete_version("seed", 1)
    # Each thread's own version keeps the files while it lives, whatever the other one deletes.
    threads = [threading.Thread(target=churn, args=(name,)) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
