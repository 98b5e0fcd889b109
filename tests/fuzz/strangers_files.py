"""Fuzzes the readers of strangers' files::

    python tests/fuzz/strangers_files.py gguf safetensors tokenizer template --seconds 600 --seed 1

Small valid files are mutated again and again. Each is read in a process of its own with limits, by the functions that
an import's child calls: it is accepted, refused with a reason, or the process dies. What must not be: a process that
ends neither way in time, and a reader of ours (``gguf``, ``safetensors``) that raises what it did not mean to.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType
from support.gguf_files import CONTROL, Source, write_gguf
from support.router_doors import CHAT_TEMPLATE, byte_fallback_tokenizer
from support.small_checkpoint import write_checkpoint

from engines.checkpoint.model_config import describe
from model_registry.checkpoint import check_folder
from model_registry.importing.examination import examine_folder
from model_registry.importing.gguf_import import convert_gguf
from mooring.child import Limits, limit_this_process
from mooring.errors import ArtifactError
from mooring.server.file_reading import check_text
from mooring.units import GIB
from router.text_process.model_folder import load_model_text

_LIMITS = Limits(2 * GIB, 3)
_MAX_S = 60.0  # on a machine that does much else; processor time ends at 3 s
_STATUSES = {0: "accepted", 10: "refused", 11: "raised"}
_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1)
_WORDS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"[" * 2000,
        b"9" * 3000,
        b"\\ud800",
    ),
    *(
        b"{{ 9**(9**9) }}",
        b"{{ 'x' * 999999999 }}",
        b"{% for a in range(99999) %}",
        b"{% endfor %}",
        b"{% endif %}",
    ),
    *(
        b"{{ messages }}",
        b"{% set messages = messages + messages %}",
        b"|tojson",
        b"(((((",
        b"{{ cycler.__init__ }}",
    ),
)


@dataclass(frozen=True)
class Target:
    """A reader and the valid files from which its input is made.

    Attributes:
        seeds: whole contents of the file that is mutated.
        read: reads a folder that holds the mutated file.
        file_name: the file's name in the folder.
        is_ours: whether the reader is ours alone, so that it has to give a reason for every refusal.
    """

    seeds: Sequence[bytes]
    read: Callable[[Path], object]
    file_name: str
    is_ours: bool


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers of strangers' files.")
    parser.add_argument(
        "readers", nargs="*", help="gguf, safetensors, tokenizer, template; all if none is given"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="for each reader")
    parser.add_argument("--files", type=int, help="for each reader, in place of --seconds")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        targets = make_targets(folder)
        for name in args.readers or targets:
            end_s = math.inf if args.files else time.monotonic() + args.seconds
            rng = random.Random(args.seed)
            failures += fuzz(name, targets[name], folder / name, end_s, args.files or sys.maxsize, rng)
    return 1 if failures else 0


def make_targets(root: Path) -> dict[str, Target]:
    """Each reader with a folder of its own, named after it, which holds a valid model."""
    for name in ("gguf", "safetensors", "tokenizer", "template"):
        write_checkpoint(root / name)
    checkpoint = root / "safetensors"
    byte_tokens = [*CONTROL, *(f"<0x{value:02X}>" for value in range(256)), "he", "▁", "h", "e"]
    sources = (
        Source(),
        Source(kind=GGMLQuantizationType.Q8_0, tied=False),
        Source(architecture="qwen3", pre="qwen2"),
        Source(tokenizer_model="llama", tokens=byte_tokens),
    )
    return {
        "gguf": Target(
            [write_gguf(root / "seed.gguf", source).read_bytes() for source in sources],
            _convert,
            "m.gguf",
            True,
        ),
        "safetensors": Target(
            [(checkpoint / "model.safetensors").read_bytes()],
            lambda folder: examine_folder(folder, describe),
            "model.safetensors",
            True,
        ),
        "tokenizer": Target(
            [(checkpoint / "tokenizer.json").read_bytes(), byte_fallback_tokenizer().to_str().encode()],
            _examine_text,
            "tokenizer.json",
            False,
        ),
        "template": Target(
            [CHAT_TEMPLATE.encode()],
            _examine_text,
            "chat_template.jinja",
            False,
        ),
    }


def _examine_text(folder: Path) -> None:
    check_folder(folder)
    check_text(load_model_text(folder))


def _convert(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        convert_gguf(folder / "m.gguf", Path(made, "converted"))


def fuzz(name: str, target: Target, folder: Path, end_s: float, num_files: int, rng: random.Random) -> int:
    """Reads mutated files until a time or a number of them is reached, prints what became of them, and returns the
    number of failures. Files that failed are kept in the working directory."""
    endings: Counter[str] = Counter()
    num_failures = 0
    while time.monotonic() < end_s and endings.total() < num_files:
        content = mutated(target.seeds, rng)
        (folder / target.file_name).write_bytes(content)
        ending = read_apart(target.read, folder)
        endings[ending] += 1
        if ending == "hung" or (target.is_ours and ending == "raised"):
            num_failures += 1
            kept = Path(f"fuzz-{name}-{num_failures}")
            kept.write_bytes(content)
            print(f"{name}: {ending}: {kept}", flush=True)
    print(f"{name}: {endings.total()} files: {dict(endings.most_common())}", flush=True)
    return num_failures


def read_apart(read: Callable[[Path], object], folder: Path) -> str:
    """Reads a folder in a fork of this process; returns how that ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(_read(read, folder))
    end_s = time.monotonic() + _MAX_S
    while time.monotonic() < end_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return _STATUSES.get(code) or (signal.Signals(-code).name if code < 0 else f"status {code}")
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def _read(read: Callable[[Path], object], folder: Path) -> int:
    limit_this_process(_LIMITS)
    try:
        read(folder)
    except (ArtifactError, MemoryError):
        return 10
    except BaseException:
        traceback.print_exc(limit=-3)
        return 11
    return 0


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds, changed in one to six places."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        # Most of a file of weights is weights: its beginning is where a reader can be wrong.
        at = rng.randrange(min(len(content), rng.choice((64, 1024, 16_384, len(content) or 1)) or 1) or 1)
        length = rng.choice((1, 2, 4, 8, 64, 1024))
        match rng.randrange(7):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(_NUMBERS) % (1 << 8 * size)
                content[at : at + size] = number.to_bytes(size, "little")
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                other = rng.choice(seeds)
                begin = rng.randrange(len(other))
                content[at : at + length] = other[begin : begin + length]
            case 5:
                content[at:at] = rng.choice(_WORDS)
            case 6:
                del content[at:]
        if not content:
            break
    return bytes(content)


if __name__ == "__main__":
    sys.exit(main())
