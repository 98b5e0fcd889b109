"""Attacks with models that an operator registers: files whose readers never end, chat templates that compute for
ever, a tokenizer that is only large."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx

from benchmarks.abuse.target import Attack, Strike, Target
from benchmarks.null_model import null_config
from mooring.units import MIB
from ops.samples.random_weights import write_random_weights

__all__ = ["hostile_files"]

_NUM_FACTORS = MIB // 2 - 100  # of a shape, in a header of 1 MiB
_NUM_MERGES = 420_000
_DEPTH = 5_000
_UINT8, _ARRAY = 0, 9  # GGUF's numbers of types
_NUM_MESSAGES = 9  # at which the templates below do what they are made for; a trial with fewer passes
_POLL_S = 0.05

Maker = Callable[[Path, Path], Path]
"""Makes a source to register in an empty folder, given the folder of a good model."""


def hostile_files() -> dict[str, Attack]:
    """Registers such a model and, if that succeeds, asks it to chat; by what is wrong with it."""
    late = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if messages|length == 9 %}%s{% endif %}"
    makers: dict[str, Maker] = {
        "gguf": _endless_gguf,
        "gguf-nested": _nested_gguf,
        "safetensors": _huge_shape,
        "tokenizer": _large_tokenizer,
        "template-constant": partial(_template, "{{ 9 ** (9 ** 9) }}"),
        "template-power": partial(_template, late.replace("%s", "{{ 9 ** (messages|length ** 9) }}", 1)),
        "template-text": partial(_template, late.replace("%s", "{{ 'a' * (messages|length * 178000000) }}")),
        "template-loop": partial(
            _template,
            late.replace(
                "%s", "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}"
            ),
        ),
    }
    return {kind: partial(_registration, make) for kind, make in makers.items()}


def _registration(make: Maker, target: Target) -> Strike:
    folder = target.scratch / "hostile"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source = make(folder, target.model_folder)
    return partial(_register, target, source)


def _register(target: Target, source: Path) -> list[str]:
    """Registers and deploys a model, asks it once, and deletes it again."""
    answers = []
    try:
        begun = target.server.admin("POST", "/models", {"name": "hostile", "source": str(source)}).json()
        state = begun
        while state["state"] == "running":
            time.sleep(_POLL_S)
            state = target.server.admin("GET", f"/registrations/{begun['id']}").json()
        answers.append(state["state"])
        if state["state"] == "done":
            messages = [{"role": "user", "content": "a"}] * _NUM_MESSAGES
            body = {"model": "hostile", "messages": messages, "max_tokens": 1}
            url = f"{target.server.http_url}/v1/chat/completions"
            answers.append(str(target.server.client.post(url, json=body).status_code))
        for path in ("/deployments/hostile", "/models/hostile"):
            target.server.admin("DELETE", path)
    except httpx.TransportError as error:
        answers.append(type(error).__name__)
    return answers


# Files ----------------------------------------------------------------------------------------------


def _gguf(value: bytes) -> bytes:
    """A GGUF file with no tensor and one entry of metadata, ``a``, of this type and value."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + value


def _endless_gguf(folder: Path, _: Path) -> Path:
    """49 bytes that announce 2**60 more."""
    source = folder / "endless.gguf"
    source.write_bytes(_gguf(struct.pack("<IIQ", _ARRAY, _UINT8, 1 << 60)))
    return source


def _nested_gguf(folder: Path, _: Path) -> Path:
    """An array in an array in an array, 5,000 times."""
    source = folder / "nested.gguf"
    source.write_bytes(_gguf(struct.pack("<I", _ARRAY) + struct.pack("<IQ", _ARRAY, 1) * _DEPTH))
    return source


def _good_copy(folder: Path, good: Path) -> Path:
    copy = folder / "model"
    shutil.copytree(good, copy)
    return copy


def _huge_shape(folder: Path, good: Path) -> Path:
    """A header of 1 MiB with one tensor, whose size has half a million digits."""
    source = _good_copy(folder, good)
    shape = ",".join(itertools.repeat("9", _NUM_FACTORS))
    header = f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}'.encode()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return source


def _template(text: str, folder: Path, good: Path) -> Path:
    source = _good_copy(folder, good)
    (source / "chat_template.jinja").write_text(text)
    return source


def _large_tokenizer(folder: Path, good: Path) -> Path:
    """A model like the good one with a vocabulary so large that its ``tokenizer.json`` has 33 MB."""
    source = _good_copy(folder, good)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    pieces = list(vocab)
    merges = tokenizer["model"]["merges"]
    for left, right in itertools.product(pieces[300:], pieces[300:]):
        if len(merges) == _NUM_MERGES:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    (source / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    write_random_weights(null_config(len(vocab)), source)
    return source
