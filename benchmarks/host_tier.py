"""A host tier that is smaller than what the device holds: every model is served all the same, with its own text.

A real server on a CPU whose wakes copy, as on a GPU. First the host has memory for two copies and the device for
three models; then the host has memory for one copy, and one of the three models is larger than that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_models import make_random_models
from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages
from ops.running_server import RunningServer

__all__ = ["HostTierOutcome", "measure_host_tier"]

_SMALL, _LARGE = ("first", "second", "third"), "large"
_PROMPT = list(range(100, 132))
_OUTPUT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class HostTierOutcome:
    """Outcome of the requests.

    Attributes:
        num_requests: all that were sent.
        failures: what went wrong, one for each request that was refused, failed, or had another text than the same
            model's first answer.
        num_from_file: loads that left no copy in host memory.
        num_dropped: copies that residents gave up for others.
    """

    num_requests: int
    failures: tuple[str, ...]
    num_from_file: int
    num_dropped: int


def measure_host_tier(
    scratch: Path,
    config: Mapping[str, Any],
    rounds: int,
    max_model_len: int,
    num_threads: int | None = None,
    cpu_wake: str = "copy",
) -> HostTierOutcome:
    """Asks the models of each server ``rounds`` times, and puts them to sleep in between: several at once, and all
    one after another, so that the room for the copy of one has to come from a resident.

    Args:
        config: a config.json: the shape of the small models. The large one has three times as many layers.
    """
    folders = make_random_models(scratch / "models", config, _SMALL, "bf16")
    large = {**config, "num_hidden_layers": 3 * config["num_hidden_layers"]}
    folders |= make_random_models(scratch / "models", large, (_LARGE,), "bf16", first_seed=len(folders))
    found = _Found({}, [])
    for number, (names, num_copies) in enumerate(((_SMALL, 2), ((*_SMALL[:2], _LARGE), 1))):
        settings = scratch / f"{number}.toml"
        served = {name: folders[name] for name in names}
        _write_settings(settings, served, num_copies, max_model_len, num_threads, cpu_wake)
        with RunningServer(scratch / f"data-{number}", {}, config=settings) as server:
            for _ in range(rounds):
                for asked in ((names,), (names[:2],), (names[1:],), tuple((name,) for name in names)):
                    for together in asked:
                        found.ask(server, together)
                    for name in itertools.chain(*asked):
                        server.admin("POST", f"/deployments/{name}/sleep").raise_for_status()
            found.count(server)
    return HostTierOutcome(found.num_requests, tuple(found.failures), found.num_from_file, found.num_dropped)


@dataclass(slots=True)
class _Found:
    texts: dict[str, str]
    failures: list[str]
    num_requests: int = 0
    num_from_file: int = 0
    num_dropped: int = 0

    def ask(self, server: RunningServer, names: Sequence[str]) -> None:
        """Sends one request to each model at once."""

        def complete(name: str) -> tuple[str, int, str]:
            body = {"model": name, "prompt": _PROMPT, "max_tokens": _OUTPUT_TOKENS, "temperature": 0}
            answer = server.client.post(f"{server.http_url}/v1/completions", json=body)
            text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
            return name, answer.status_code, text

        with ThreadPoolExecutor(len(names)) as threads:
            answers = list(threads.map(complete, names))
        self.num_requests += len(answers)
        for name, status, text in answers:
            if status != 200:
                self.failures.append(f"{name}: {status} {text}")
            elif self.texts.setdefault(name, text) != text:
                self.failures.append(f"{name}: {text!r} in place of {self.texts[name]!r}")

    def count(self, server: RunningServer) -> None:
        """Adds what the server's events tell."""
        loads = server.admin("GET", "/events?kind=load&limit=1000").json()
        self.num_from_file += sum("from the file" in each["reason"] for each in loads)
        drops = server.admin("GET", "/events?kind=drop&limit=1000").json()
        self.num_dropped += sum("wanted_bytes" in each["figures"] for each in drops)


def _write_settings(
    path: Path,
    folders: Mapping[str, Path],
    num_copies: int,
    max_model_len: int,
    num_threads: int | None,
    cpu_wake: str,
) -> None:
    """Writes the settings of a server with device memory for all of the models and host memory for ``num_copies`` of
    the first."""
    descriptions = [describe(folder) for folder in folders.values()]
    sizes = [each.weights_bytes("bf16") for each in descriptions]
    kv_bytes = sum(
        kv_bytes_for_tokens(kv_groups(ModelConfig.from_dict(each.config), 2), max_model_len)
        for each in descriptions
    )
    weights_bytes = sum(round_to_pages(each) + PAGE_BYTES for each in sizes)
    lines = [
        f"memory_budget = {weights_bytes + 2 * kv_bytes + PAGE_BYTES}",
        # A copy is a little larger than the weights, and a third one must not fit.
        f"host_cache_budget = {num_copies * sizes[0] + sizes[0] // 4}",
        'dtype = "bfloat16"',
    ]
    for name, folder in folders.items():
        lines += [
            "[[models]]",
            f'name = "{name}"',
            f'source = "{folder}"',
            f"max_model_len = {max_model_len}",
        ]
    lines += ["[torch]", f'cpu_wake = "{cpu_wake}"']
    if num_threads is not None:
        lines += [f"num_threads = {num_threads}"]
    path.write_text("\n".join(lines) + "\n")
