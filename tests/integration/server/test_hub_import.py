"""Registering from a hub: a real HTTP server that answers as the hub does, and the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support.databases import ENGINES
from support.small_checkpoint import write_checkpoint

from model_registry.database import open_database
from model_registry.importing.hub import Hub, parse_hub_source
from model_registry.importing.importer import Importer
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import ArtifactError, InvalidRequestError
from mooring.server.file_reader import FileReader

pytestmark = pytest.mark.integration

FETCHED = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Files by repository, and the paths that were asked for."""

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    commit: object = COMMIT
    digests: dict[str, str] = field(default_factory=dict)  # of files that are announced with one
    sizes: dict[str, int | None] = field(
        default_factory=dict
    )  # of files that are announced with another size than theirs

    def sibling(self, name: str, data: bytes) -> dict[str, object]:
        found: dict[str, object] = {"rfilename": name, "size": self.sizes.get(name, len(data))}
        if name in self.digests:
            lfs = {"size": len(data), "sha256": self.digests[name], "pointerSize": 1}
            found["lfs"] = lfs
        return found


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    state = FakeHub()
    files = write_checkpoint(tmp_path / "source").iterdir()
    state.repositories["org/tiny"] = {
        **{file.name: file.read_bytes() for file in files},
        "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
        "pytorch_model.bin": b"\x80\x04.",
        "onnx/model.safetensors": b"another format",
    }
    state.repositories["org/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."}

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            repository = state.repositories.get("/".join(parts[2:4] if api else parts[:2]))
            if repository is None:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
            elif api and "tree" in parts:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in repository.items()
                ]
                self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)
            elif api and parts[-1] not in ("main", COMMIT) and "revision" in parts:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
            elif api:
                siblings = [state.sibling(name, data) for name, data in repository.items()]
                info = {
                    "id": "org/x",
                    "sha": state.commit,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
            else:
                name = "/".join(parts[4:])
                data = repository[name]
                if with_body:
                    state.fetched.append(name)
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.reply(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT}, with_body)

        def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def make_importer(tmp_path: Path, endpoint: str) -> Importer:
    registry = Registry(open_database(f"sqlite:///{tmp_path}/registry.db"), ENGINES)
    store = ArtifactStore(tmp_path / "store")
    return Importer(store, registry, FileReader("null"), Hub(endpoint), tmp_path / "downloads")


def test_a_repository_is_registered_at_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    importer = make_importer(tmp_path, hub.endpoint)
    version = importer.register("tiny", "hf://org/tiny@main", lambda *state: seen.append(state))

    assert version.source == f"hf://org/tiny@{COMMIT}"
    assert version.license == "apache-2.0"
    assert sorted(hub.fetched) == FETCHED
    downloads = [state for state in seen if state[0] == "download"]
    total_bytes = downloads[-1][2]
    assert downloads[0] == ("download", 0, total_bytes)
    assert downloads[-1] == ("download", total_bytes, total_bytes)
    assert {"download", "check", "copy"} <= {stage for stage, _, _ in seen}
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("commit", ["../../store", "/etc", "", None, "main", COMMIT.upper(), COMMIT + "/x"])
def test_a_commit_that_is_none_never_becomes_a_path(hub: FakeHub, tmp_path: Path, commit: object) -> None:
    importer = make_importer(tmp_path, hub.endpoint)
    hub.commit = commit
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match="names no commit"):
        importer.register("tiny", "hf://org/tiny@main")
    assert sorted(tmp_path.rglob("*")) == before
    assert hub.fetched == []


def test_a_hub_that_changes_its_mind_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    source = Hub(hub.endpoint).resolve(parse_hub_source("hf://org/tiny"))
    hub.commit = "1" * 40
    with pytest.raises(ArtifactError, match="another commit"):
        Hub(hub.endpoint).fetch(source, tmp_path, lambda *report: None)
    assert hub.fetched == []


def test_only_plain_names_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    for name in (
        "tokenizer..\\..\\x.json",
        "tokenizer*.json",
        "model\n.safetensors",
        "../config.json",
        "/README.md",
    ):
        hub.repositories["org/tiny"][name] = b"{}"
    make_importer(tmp_path, hub.endpoint).register("tiny", "hf://org/tiny")
    assert sorted(set(hub.fetched)) == FETCHED


def test_a_digest_is_compared_with_what_came(hub: FakeHub, tmp_path: Path) -> None:
    weights = hub.repositories["org/tiny"]["model.safetensors"]
    hub.digests["model.safetensors"] = "0" * 64
    importer = make_importer(tmp_path, hub.endpoint)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not the file that the hub announced"):
        importer.register("tiny", "hf://org/tiny")
    assert not list((tmp_path / "downloads").glob("*/model.safetensors"))
    hub.digests["model.safetensors"] = hashlib.sha256(weights).hexdigest()
    assert importer.register("tiny", "hf://org/tiny").number == 1


def test_a_model_that_the_disk_cannot_hold_is_refused_before_it_is_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.sizes["model.safetensors"] = 1 << 60
    with pytest.raises(ArtifactError, match="of disk"):
        make_importer(tmp_path, hub.endpoint).register("tiny", "hf://org/tiny")
    assert hub.fetched == []


def test_bytes_beyond_the_announced_end_the_download(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.importing.hub.SLACK_BYTES", 0)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.repositories["org/tiny"]["model.safetensors"] += bytes(4 << 20)
    hub.sizes["model.safetensors"] = 1000
    with pytest.raises(ArtifactError, match="more bytes than it announced"):
        make_importer(tmp_path, hub.endpoint).register("tiny", "hf://org/tiny")
    partial = [path.stat().st_size for path in (tmp_path / "downloads").rglob("*") if path.is_file()]
    assert max(partial, default=0) < 1 << 20


def test_a_mirror_that_announces_no_sizes_is_bounded_by_the_disk(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.importing.hub.SLACK_BYTES", 0)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 12)
    hub.sizes = dict.fromkeys(hub.repositories["org/tiny"])
    num_bytes = sum(map(len, hub.repositories["org/tiny"].values()))
    with monkeypatch.context() as patch:
        patch.setattr("model_registry.importing.hub.room_bytes", lambda _: num_bytes)
        with pytest.raises(ArtifactError, match="more bytes than the disk holds"):
            make_importer(tmp_path, hub.endpoint).register("tiny", "hf://org/tiny")
    (tmp_path / "other").mkdir()
    assert make_importer(tmp_path / "other", hub.endpoint).register("tiny", "hf://org/tiny").number == 1


def test_pickles_are_refused_before_anything_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin is a pickle"):
        make_importer(tmp_path, hub.endpoint).register("m", "hf://org/pickled")
    assert hub.fetched == []


def test_what_the_hub_does_not_have_is_named(hub: FakeHub, tmp_path: Path) -> None:
    importer = make_importer(tmp_path, hub.endpoint)
    with pytest.raises(ArtifactError, match="no org/nothing, or it is private"):
        importer.register("m", "hf://org/nothing")
    with pytest.raises(ArtifactError, match="no revision 'v9'"):
        importer.register("m", "hf://org/tiny@v9")


def test_without_a_connection_the_error_says_what_to_do(tmp_path: Path) -> None:
    importer = make_importer(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(ArtifactError, match="register a local folder"):
        importer.register("m", "hf://org/tiny")


@pytest.mark.parametrize(
    "text", ["hf://", "hf://tiny", "hf://org/tiny@", "hf://org/../x/y", "hf://org/ti ny"]
)
def test_malformed_sources(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_hub_source(text)
    assert caught.value.param == "source"


def test_an_outline_fetches_the_configuration_alone(hub: FakeHub, tmp_path: Path) -> None:
    importer = make_importer(tmp_path, hub.endpoint)
    found = importer.outline("hf://org/tiny@main")
    assert hub.fetched == ["config.json"]
    version = importer.register("tiny", "hf://org/tiny@main")
    assert found.max_model_len == version.description["max_model_len"]
    assert found.precision == version.description["default_precision"]
    assert {**found.config, "eos_token_ids": None} == {**version.description["config"], "eos_token_ids": None}
    del hub.repositories["org/tiny"]["config.json"]
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        importer.outline("hf://org/tiny@main")
    hub.repositories["org/tiny"]["config.json"] = b" " * (5 << 20)
    with pytest.raises(ArtifactError, match="too large"):
        importer.outline("hf://org/tiny@main")
