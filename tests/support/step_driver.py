"""An engine in this process, whatever kind it is of, driven step by step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engines.api import Engine, Finished, SamplingParams, SequenceRequest, TopLogprobs, run_step

__all__ = ["StepDriver"]


@dataclass
class StepDriver:
    """An engine, and everything it has said so far."""

    engine: Engine
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[TopLogprobs]] = field(default_factory=lambda: defaultdict(list))
    prompt_logprobs: dict[int, Sequence[TopLogprobs]] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    computed_tokens: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    finished: dict[int, Finished] = field(default_factory=dict)

    def submit(
        self,
        sequence_id: int,
        prompt: Sequence[int],
        replica_id: str = "m",
        *,
        output_ids: Sequence[int] = (),
        deadline_s: float = float("inf"),
        priority: int = 0,
        cache_scope: bytes | None = b"",
        tpot_target_s: float = float("inf"),
        **sampling: Any,
    ) -> None:
        params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 20, **sampling})
        self.engine.submit(
            SequenceRequest(
                sequence_id,
                replica_id,
                np.array(prompt, np.int32),
                params,
                np.array(output_ids, np.int32),
                deadline_s,
                priority,
                cache_scope,
                tpot_target_s,
            )
        )

    def step(self) -> int:
        """One step; returns the number of outputs."""
        outputs = run_step(self.engine)
        for output in outputs:
            for sequence_id, first in output.first_tokens.items():
                assert sequence_id in output.sequence_ids
                assert not self.tokens.get(sequence_id), "once, with the first token"
                if first.prompt_logprobs is not None:
                    self.prompt_logprobs[sequence_id] = first.prompt_logprobs
                if first.cached_tokens is not None:
                    self.cached_tokens[sequence_id] = first.cached_tokens
            for sequence_id, num_computed in output.computed_tokens.items():
                self.computed_tokens[sequence_id] += num_computed
            columns = zip(output.sequence_ids, output.token_ids, strict=True)
            for i, (sequence_id, token_id) in enumerate(columns):
                assert sequence_id not in self.finished
                self.tokens[sequence_id].append(token_id)
                if i in output.top_logprobs:
                    self.logprobs[sequence_id].append(output.top_logprobs[i])
            for end in output.finished:
                assert end.sequence_id not in self.finished
                self.finished[end.sequence_id] = end
        return len(outputs)

    def run(self, timeout_s: float = 120.0) -> None:
        """Steps until there is nothing left to do."""
        deadline_s = time.monotonic() + timeout_s
        while self.engine.has_work():
            assert time.monotonic() < deadline_s, "work is left"
            self.step()
