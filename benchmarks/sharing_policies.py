"""Ways to share one budget between three models, each the same engine under another configuration.

elastic: KV floats between the models, and if not all of them fit the planner decides which are resident.
static: the KV is cut into equal fixed parts, each a guarantee and a cap, as servers that reserve their pool
at the start do. If not all weights fit, the most popular models have the budget and the others are not
served. swap: one model at a time, first come, first served, the one before drained; in virtual time alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.replay import Targets
from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages

__all__ = ["Arrangement", "Budget", "SharingPolicy", "write_config"]

_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


class SharingPolicy(enum.Enum):
    """The way in which the models share."""

    ELASTIC = "elastic"
    STATIC = "static"
    SWAP = "swap"


class Budget(enum.Enum):
    """Number of models whose weights the budget holds beside the KV."""

    ALL = "all"
    TWO_OF_THREE = "two_of_three"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The models and the memory that they need.

    Attributes:
        folders: folders by name, the most popular model first; all have one shape.
        precision: precision that the models are served in.
        weights_bytes: whole pages of one model's weights.
        kv_bytes: KV of all models, the null page aside.
        max_model_len: context of every deployment, in tokens.
    """

    folders: Mapping[str, Path]
    precision: str
    weights_bytes: int
    kv_bytes: int
    max_model_len: int

    @classmethod
    def of(
        cls, folders: Mapping[str, Path], precision: str, max_model_len: int, num_sequences: int
    ) -> Arrangement:
        """The arrangement with KV for ``num_sequences`` sequences of the longest length."""
        description = describe(next(iter(folders.values())))
        groups = kv_groups(ModelConfig.from_dict(description.config), _ELEMENT_BYTES[precision])
        return cls(
            folders=folders,
            precision=precision,
            weights_bytes=round_to_pages(description.weights_bytes(precision)) + PAGE_BYTES,  # of alignment
            kv_bytes=num_sequences * kv_bytes_for_tokens(groups, max_model_len),
            max_model_len=max_model_len,
        )

    def num_models(self, budget: Budget) -> int:
        return len(self.folders) if budget is Budget.ALL else len(self.folders) - 1

    def budget_bytes(self, budget: Budget) -> int:
        return self.num_models(budget) * self.weights_bytes + self.kv_bytes + PAGE_BYTES


def write_config(
    arrangement: Arrangement,
    budget: Budget,
    policy: SharingPolicy,
    targets: Targets,
    path: Path,
    num_threads: int | None = None,
) -> None:
    """Writes the settings of a server, elastic or static."""
    budget_bytes = arrangement.budget_bytes(budget)
    num_models = arrangement.num_models(budget)
    part_bytes = arrangement.kv_bytes // num_models // PAGE_BYTES * PAGE_BYTES
    share: dict[str, object] = {}
    served = dict(arrangement.folders)
    if policy is SharingPolicy.STATIC:
        served = dict(list(served.items())[:num_models])
        share = {"kv_guarantee_bytes": part_bytes, "kv_cap_bytes": part_bytes, "pinned": "true"}
    lines = [
        f"memory_budget = {budget_bytes}",
        f'dtype = "{_DTYPES[arrangement.precision]}"',
        f"host_cache_budget = {(len(served) + 1) * arrangement.weights_bytes}",
    ]
    lines += ["[planner]", f"ttft_target_s = {targets.ttft_s}", f"tpot_target_s = {targets.tpot_s}"]
    for name, folder in served.items():
        lines += ["[[models]]", f'name = "{name}"', f'source = "{folder}"']
        lines += [f"max_model_len = {arrangement.max_model_len}"]
        lines += [f"{setting} = {value}" for setting, value in share.items()]
    # As on a GPU; a CPU need not copy at all.
    lines += ["[torch]", 'cpu_wake = "copy"']
    if num_threads is not None:
        lines += [f"num_threads = {num_threads}"]
    path.write_text("\n".join(lines) + "\n")
