"""Guesses of one tenant about the prompts of another one, by the time to the first token, on a real server.

``mooring bench isolation --out DIR``. A victim sends prompts. An attacker then sends prompts of its own, of which
half begin as one of the victim's does and half as none does, in random order and each once, and tries to tell them
apart by the time to their first tokens: the figure is the area under the curve (AUC) of that guess, 0.5 where nothing
is told. The same with a deployment whose tenants share what they computed shows that a signal would be seen.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.intervals import Auc, auc_of
from benchmarks.random_models import SMALL_SHAPE, TINY_SHAPE, make_random_models, native_precision
from benchmarks.report import Report
from mooring.errors import InternalError
from ops.running_server import RunningServer
from router.doors.prediction import PREDICTED_TTFT

__all__ = ["Guesses", "IsolationLoad", "SeenToken", "figures_of", "main", "misses_of"]

BLOCK_TOKENS = 16
MAX_DEVIATION = 0.05
MIN_UNSALTED_AUC = 0.9
_MODEL = "m"
_VICTIM, _ATTACKER = "victim", "attacker"
# KV for many rounds. Of several threads each step waits for the slowest, which other processes hold up.
_SETTINGS = """memory_budget = "1GiB"
[torch]
num_threads = 1
"""
_TIMEOUT_S = 120.0
_NUM_LINES = 10  # of progress, for each policy


@dataclass(frozen=True, slots=True)
class IsolationLoad:
    """Amounts of what is measured.

    Attributes:
        shape: config.json of the model.
        num_requests: of the attacker, while tenants share nothing.
        num_unsalted: of the attacker, while they share.
        prefix_tokens: tokens that a prompt of the attacker has in common with one of the victim's; whole blocks.
        tail_tokens: tokens after them, of which no two prompts have the same.
        num_each_round: prompts that the victim sends before the attacker sends twice as many.
    """

    shape: Mapping[str, Any]
    num_requests: int = 4000
    num_unsalted: int = 200
    prefix_tokens: int = 7 * BLOCK_TOKENS
    tail_tokens: int = BLOCK_TOKENS
    num_each_round: int = 10
    seed: int = 0

    @classmethod
    def full(cls, seed: int) -> IsolationLoad:
        """A model of 25 million parameters."""
        return cls(SMALL_SHAPE, seed=seed)

    @classmethod
    def quick(cls, seed: int) -> IsolationLoad:
        """A tiny model and few requests: shows whether the benchmark works, not what the server tells."""
        return cls(TINY_SHAPE, num_requests=40, num_unsalted=40, prefix_tokens=30 * BLOCK_TOKENS, seed=seed)


@dataclass(frozen=True, slots=True)
class SeenToken:
    """Everything that a client learns from a request for one token.

    Attributes:
        first_s: seconds from sending the request to its first token.
        cached_tokens: of the prompt, as the usage says.
        predicted_ms: time to the first token as the answer's header says; 0 without one.
    """

    first_s: float
    cached_tokens: int
    predicted_ms: int


@dataclass(slots=True)
class Guesses:
    """Answers that the attacker had under one policy.

    Attributes:
        policy: the deployment's ``prefix_cache``.
        sent: answers to prompts that begin as one of the victim's.
        fresh: answers to prompts that begin as none.
        num_victim: prompts of the victim.
        num_kept: those that the victim found whole when it sent them again after the attacker: all, or the attacker
            may have looked for what was not there.
    """

    policy: str
    sent: list[SeenToken] = field(default_factory=list)
    fresh: list[SeenToken] = field(default_factory=list)
    num_victim: int = 0
    num_kept: int = 0

    @property
    def auc(self) -> Auc:
        """AUC of the guess that the victim sent what comes sooner."""
        return auc_of([each.first_s for each in self.sent], [each.first_s for each in self.fresh])

    @property
    def predicted_auc(self) -> Auc:
        """AUC of the guess that the victim sent what is predicted to come sooner."""
        return auc_of([each.predicted_ms for each in self.sent], [each.predicted_ms for each in self.fresh])

    @property
    def cached_tokens(self) -> int:
        """Tokens that the server said to the attacker that it had found."""
        return sum(each.cached_tokens for each in (*self.sent, *self.fresh))


class _Tenants:
    """Two tenants of one server, and prompts that are random ids."""

    def __init__(self, server: RunningServer, load: IsolationLoad) -> None:
        self._server = server
        self._load = load
        self._rng = np.random.default_rng(load.seed)
        self._keys = {name: server.new_key(name) for name in (_VICTIM, _ATTACKER)}

    def guess(self, policy: str, num_requests: int, show: Callable[[str], None]) -> Guesses:
        """Sends so many requests of the attacker, round by round; those of a round before them do not count."""
        self._server.admin("PATCH", f"/deployments/{_MODEL}", {"prefix_cache": policy}).raise_for_status()
        self._round(Guesses(policy))
        guesses = Guesses(policy)
        num_rounds = -(-num_requests // (2 * self._load.num_each_round))
        for number in range(1, num_rounds + 1):
            self._round(guesses)
            if number % max(1, num_rounds // _NUM_LINES) == 0 or number == num_rounds:
                show(f"{policy}: AUC {guesses.auc} after {len(guesses.sent) + len(guesses.fresh)} requests")
        return guesses

    def _round(self, guesses: Guesses) -> None:
        load = self._load
        prefixes = [self._ids(load.prefix_tokens) for _ in range(load.num_each_round)]
        prompts = [prefix + self._ids(load.tail_tokens) for prefix in prefixes]
        for prompt in prompts:
            self._ask(_VICTIM, prompt)
        probes = [(guesses.sent, prefix) for prefix in prefixes]
        probes += [(guesses.fresh, self._ids(load.prefix_tokens)) for _ in prefixes]
        for place in self._rng.permutation(len(probes)):
            seen, prefix = probes[place]
            seen.append(self._ask(_ATTACKER, prefix + self._ids(load.tail_tokens)))
        found = [self._ask(_VICTIM, prompt) for prompt in prompts]
        guesses.num_victim += len(found)
        guesses.num_kept += sum(each.cached_tokens >= load.prefix_tokens for each in found)

    def _ids(self, num_tokens: int) -> list[int]:
        ids: list[int] = self._rng.integers(self._load.shape["vocab_size"], size=num_tokens).tolist()
        return ids

    def _ask(self, tenant: str, prompt: Sequence[int]) -> SeenToken:
        address = urlsplit(self._server.http_url)
        assert address.hostname is not None
        body = json.dumps(
            {
                "model": _MODEL,
                "prompt": prompt,
                "max_tokens": 1,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                "logprobs": 0,  # an event for the token, also where its text is not certain yet
            }
        )
        headers = {"authorization": f"Bearer {self._keys[tenant]}", "content-type": "application/json"}
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=_TIMEOUT_S)
        with closing(connection):
            connection.connect()
            began_s = time.perf_counter()
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            event = answer.readline()
            first_s = time.perf_counter() - began_s
            rest = answer.read()
        events = [line[6:] for line in (event + rest).splitlines() if line.startswith(b"data: {")]
        if answer.status != 200 or b'"usage"' not in events[-1]:
            raise InternalError(f"a request was answered with {answer.status}: {(event + rest).decode()}")
        cached_tokens = json.loads(events[-1])["usage"]["prompt_tokens_details"]["cached_tokens"]
        return SeenToken(first_s, cached_tokens, int(answer.headers.get(PREDICTED_TTFT, "0")))


def figures_of(salted: Guesses, unsalted: Guesses) -> dict[str, float]:
    """The figures; intervals are of 95 %."""
    figures: dict[str, float] = {}
    for name, auc in (
        ("timing_auc", salted.auc),
        ("predicted_auc", salted.predicted_auc),
        ("timing_auc_unsalted", unsalted.auc),
    ):
        figures |= {name: auc.value, f"{name}_low": auc.low, f"{name}_high": auc.high}
    num_victim = salted.num_victim + unsalted.num_victim
    return {
        **figures,
        "foreign_cached_tokens": float(salted.cached_tokens),
        "victim_kept": (salted.num_kept + unsalted.num_kept) / num_victim,
    }


def misses_of(figures: Mapping[str, float]) -> list[str]:
    """Names whatever is not as promised, or makes the measurement worthless; a sentence each."""
    misses = [
        f"{name} is not within {MAX_DEVIATION} of 0.5"
        for name in ("timing_auc", "predicted_auc")
        if figures[f"{name}_low"] < 0.5 - MAX_DEVIATION or figures[f"{name}_high"] > 0.5 + MAX_DEVIATION
    ]
    if figures["foreign_cached_tokens"]:
        misses.append("the usage tells of what another tenant sent")
    if figures["timing_auc_unsalted"] < MIN_UNSALTED_AUC:
        misses.append("a signal would not have been seen: timing_auc_unsalted is low")
    if figures["victim_kept"] < 1:
        misses.append("what the victim sent was not there any more")
    return misses


def main(out: Path, load: IsolationLoad, show: Callable[[str], None]) -> dict[str, float]:
    """Measures with tenants that share nothing, then with such that share, and writes the report.

    Args:
        show: called with a line now and then, and one for each miss.

    Returns:
        The figures, of which ``missed`` is the number of misses.
    """
    report = Report(out, "What one tenant can tell by the time of another's prompts")
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        scratch = Path(name)
        folders = make_random_models(scratch / "models", load.shape, (_MODEL,), native_precision())
        config = scratch / "isolation.toml"
        config.write_text(_SETTINGS)
        with RunningServer(scratch / "data", folders, config=config) as server:
            tenants = _Tenants(server, load)
            salted = tenants.guess("tenant", load.num_requests, show)
            unsalted = tenants.guess("shared", load.num_unsalted, show)
    figures = figures_of(salted, unsalted)
    misses = misses_of(figures)
    for miss in misses:
        show(f"MISS {miss}")
    figures["missed"] = float(len(misses))
    for figure, value in figures.items():
        report.figure(figure, value)
    _report(report, load, salted, unsalted, misses)
    report.write()
    return figures


def _report(
    report: Report, load: IsolationLoad, salted: Guesses, unsalted: Guesses, misses: Sequence[str]
) -> None:
    report.text(
        f"A server whose torch engine computes with one thread. A victim sends {load.num_each_round} prompts "
        f"of {load.prefix_tokens + load.tail_tokens} random tokens, one after the other. Then an attacker, "
        f"another tenant, sends as many that begin with the {load.prefix_tokens} tokens of one of them and as "
        "many that begin with others, in random order, each once, for one token each. Then the victim sends "
        "its own again, which have to be found, and so on. AUC: how likely a prompt that the victim sent the "
        "beginning of has its first token sooner than one whose beginning nobody sent; a tie counts as one "
        "half. Its 95 % interval is DeLong's. Predicted: the same of the time that the answer's header "
        "predicts. Cached: tokens of the attacker's prompts that the usage says were found. Kept: prompts of "
        "the victim that were there for all the time that the attacker looked for them."
    )
    rows = []
    for each in (salted, unsalted):
        sent_ms, fresh_ms = (
            np.percentile([1e3 * seen.first_s for seen in side], (10, 50, 90))
            for side in (each.sent, each.fresh)
        )
        rows.append(
            [
                f"`{each.policy}`",
                len(each.sent) + len(each.fresh),
                *(" / ".join(f"{value:.1f}" for value in side) for side in (sent_ms, fresh_ms)),
                str(each.auc),
                str(each.predicted_auc),
                each.cached_tokens,
                f"{each.num_kept} of {each.num_victim}",
            ]
        )
    times = "ms, p10 / p50 / p90"
    report.table(
        [
            "`prefix_cache`",
            "requests",
            f"sent by the victim, {times}",
            f"sent by nobody, {times}",
            "AUC",
            "predicted",
            "cached",
            "kept",
        ],
        rows,
    )
    report.text("Missed: " + "; ".join(misses) + "." if misses else "Nothing is missed.")
    report.data(
        "times_ms",
        {
            each.policy: {
                name: [round(1e3 * seen.first_s, 3) for seen in side]
                for name, side in (("sent", each.sent), ("fresh", each.fresh))
            }
            for each in (salted, unsalted)
        },
    )
