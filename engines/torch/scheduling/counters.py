"""Counters of a replica since it was loaded."""

from __future__ import annotations

from memory_manager.policy.kv_forecast import UNMEASURED_OUTPUT_TOKENS, mean_with

__all__ = ["RunnerCounters"]


class RunnerCounters:
    """Totals of a replica, which outlive its sleep.

    Attributes:
        preemptions, prompt_tokens, generation_tokens: since the replica was loaded.
        swapped_preemptions: of these, those whose KV was copied to host memory.
        prefix_query_tokens: of prompts that were looked up among the stored blocks, when they were first begun.
        prefix_hit_tokens: of these, those that were found and not computed.
        outputs: sequences that ended of themselves.
        mean_output_tokens: running mean of their outputs.
    """

    def __init__(self) -> None:
        self.preemptions = 0
        self.swapped_preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.outputs = 0
        self.mean_output_tokens = UNMEASURED_OUTPUT_TOKENS

    def note_output(self, num_tokens: int) -> None:
        """Notes the length of an output that has ended."""
        self.mean_output_tokens = mean_with(self.mean_output_tokens, self.outputs, num_tokens)
        self.outputs += 1
