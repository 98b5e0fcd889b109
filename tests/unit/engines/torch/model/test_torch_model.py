"""The model against transformers, through the packer and the paged cache, in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from engines.artifact import Manifest
from engines.checkpoint.model_config import ModelConfig, kv_groups
from engines.checkpoint.packing import MANIFEST_NAME, WEIGHTS_NAME, pack
from engines.torch.model.batch import ForwardBatch
from engines.torch.model.kv_view import KVCacheView
from engines.torch.model.model import TransformerModel
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import ArtifactError

POOL_BYTES = 12 * PAGE_BYTES
TOLERANCE = 1e-4

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
MIXED_WINDOWS = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", {}),
    "llama-mqa-tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-mha-biases": ("llama", {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "llama-head-dim": ("llama", {"head_dim": 20}),
    "qwen2": ("qwen2", {}),
    "qwen2-windows-tied": ("qwen2", {**MIXED_WINDOWS, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-windows-bias": ("qwen3", {**MIXED_WINDOWS, "head_dim": 16, "attention_bias": True}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 11}),
}


@dataclass
class Sequence:
    tokens: list[int]
    num_cached: int = 0
    tables: list[list[int]] = field(default_factory=list)


class PagedModel:
    """A packed model over a pool of its own, with blocks handed out in a shuffled order.

    The pool starts as NaNs save for the null page, so reading anything unwritten shows.
    """

    def __init__(self, packed: Path, workspace_bytes: int, seed: int = 0) -> None:
        manifest = Manifest.from_json((packed / MANIFEST_NAME).read_bytes())
        raw = torch.from_file(str(packed / WEIGHTS_NAME), size=manifest.num_bytes, dtype=torch.uint8)
        weights = {
            name: raw[e.offset : e.offset + e.num_bytes].view(getattr(torch, e.dtype)).view(e.shape)
            for name, e in manifest.tensors.items()
        }
        self.config = ModelConfig.from_dict(json.loads(manifest.to_json())["config"])
        dtype = next(iter(weights.values())).dtype
        self.groups = kv_groups(self.config, dtype.itemsize)
        pool = torch.full((POOL_BYTES // dtype.itemsize,), float("nan"), dtype=dtype).view(torch.uint8)
        pool[:PAGE_BYTES] = 0
        self.kv = KVCacheView(pool, self.groups, dtype, self.config.num_kv_heads, self.config.head_dim)
        self.num_ways_given = 0
        self.model = TransformerModel(self.config, weights, self.kv, workspace_bytes, self._give_way)
        generator = torch.Generator().manual_seed(seed)
        pages = range(1, POOL_BYTES // PAGE_BYTES)
        self.free = []
        for g, group in enumerate(self.groups):
            offsets = [
                (page * PAGE_BYTES + block * group.block_bytes) // group.granule_bytes
                for page in pages[g :: len(self.groups)]
                for block in range(group.blocks_per_page)
            ]
            self.free.append([offsets[i] for i in torch.randperm(len(offsets), generator=generator)])

    def _give_way(self) -> None:
        self.num_ways_given += 1

    def start(self, tokens: list[int]) -> Sequence:
        return Sequence(tokens, tables=[[] for _ in self.groups])

    def step(self, work: list[tuple[Sequence, int]]) -> Tensor:
        """Runs the next ``n`` tokens of each sequence, decodes first; logits of every token."""
        num_decodes = next((i for i, (_, n) in enumerate(work) if n > 1), len(work))
        starts = [0]
        positions: list[int] = []
        writes: list[list[int]] = [[] for _ in self.groups]
        for sequence, n in work:
            new = range(sequence.num_cached, sequence.num_cached + n)
            for g, group in enumerate(self.groups):
                table = sequence.tables[g]
                while len(table) * group.block_tokens < new.stop:
                    table.append(self.free[g].pop())
                if group.window_tokens is not None:
                    # As the engine does: blocks wholly behind the window of the first new token are gone.
                    behind = max(0, new.start - group.window_tokens + 1) // group.block_tokens
                    table[:behind] = [0] * behind
                writes[g] += [table[p // group.block_tokens] for p in new]
            positions += new
            starts.append(starts[-1] + n)
        batch = ForwardBatch(
            token_ids=torch.tensor([t for s, n in work for t in s.tokens[s.num_cached : s.num_cached + n]]),
            positions=torch.tensor(positions),
            query_start=torch.tensor(starts),
            context_lens=torch.tensor([s.num_cached + n for s, n in work]),
            num_decodes=num_decodes,
            max_query_tokens=max((n for _, n in work[num_decodes:]), default=1),
            max_context_tokens=max(s.num_cached + n for s, n in work),
            block_tables=tuple(
                torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(s.tables[g]) for s, _ in work], batch_first=True
                )
                for g in range(len(self.groups))
            ),
            write_blocks=tuple(torch.tensor(w) for w in writes),
            logits_rows=torch.arange(starts[-1]),
        )
        for sequence, n in work:
            sequence.num_cached += n
        return self.model.logits(self.model.forward(batch, self.kv))


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A packed random checkpoint and transformers' own model of it."""
    model_type, overrides = VARIANTS[request.param]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**BASE, **overrides})
    reference = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in reference.parameters():  # biases start as zeros and norms as ones, which hides faults
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder / "hf")
    pack(folder / "hf", folder / "packed", "fp32", "0" * 64)
    return folder / "packed", reference


def tokens_of(seed: int, length: int) -> list[int]:
    return torch.randint(
        0, BASE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def reference_logits(reference: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return reference(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("workspace_bytes", [64 << 20, 1], ids=["one-slice", "slice-per-sequence"])
def test_mixed_batches_match_transformers(checkpoint: tuple[Path, Any], workspace_bytes: int) -> None:
    packed, reference = checkpoint
    paged = PagedModel(packed, workspace_bytes)
    a, b, c = (paged.start(tokens_of(i, length)) for i, length in enumerate((61, 45, 30)))
    wanted = [reference_logits(reference, s.tokens) for s in (a, b, c)]
    steps = [
        [(a, 17)],
        [(a, 1), (b, 23), (c, 5)],
        [(a, 1), (c, 25), (b, 7)],
        [(b, 1), (a, 40)],
        [(b, 1), (a, 1)],
        [(a, 1), (b, 13)],
    ]
    for work in steps:
        expected = []
        for sequence, n in work:
            logits = wanted[(a, b, c).index(sequence)]
            expected.append(logits[sequence.num_cached : sequence.num_cached + n])
        torch.testing.assert_close(paged.step(work), torch.cat(expected), atol=TOLERANCE, rtol=0)
    assert (a.num_cached, b.num_cached, c.num_cached) == (61, 45, 30)


def test_decoding_equals_recomputing(checkpoint: tuple[Path, Any]) -> None:
    packed, _ = checkpoint
    tokens = tokens_of(7, 40)
    paged = PagedModel(packed, 64 << 20)
    sequence = paged.start(tokens)
    decoded = torch.cat([paged.step([(sequence, 1)]) for _ in tokens])
    again = PagedModel(packed, 64 << 20, seed=1)
    whole = again.step([(again.start(tokens), len(tokens))])
    torch.testing.assert_close(decoded, whole, atol=TOLERANCE, rtol=0)


def test_bfloat16_stays_close_to_float32(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    packed, reference = checkpoint
    pack(packed.parent / "hf", tmp_path / "bf16", "bf16", "0" * 64)
    paged = PagedModel(tmp_path / "bf16", 64 << 20)
    a, b = paged.start(tokens_of(0, 30)), paged.start(tokens_of(1, 20))
    wanted = [reference_logits(reference, s.tokens) for s in (a, b)]
    whole = paged.step([(a, 29), (b, 19)])
    last = paged.step([(a, 1), (b, 1)])
    found = torch.cat((whole, last))
    expected = torch.cat((wanted[0][:29], wanted[1][:19], wanted[0][29:], wanted[1][19:]))
    correlation = torch.corrcoef(torch.stack((found.flatten(), expected.flatten())))[0, 1]
    assert correlation > 0.995


def test_no_rows_wanted_gives_no_logits(checkpoint: tuple[Path, Any]) -> None:
    packed, _ = checkpoint
    paged = PagedModel(packed, 64 << 20)
    group_blocks = [free[-1] for free in paged.free]
    batch = ForwardBatch(
        token_ids=torch.tensor([5, 6]),
        positions=torch.arange(2),
        query_start=torch.tensor([0, 2]),
        context_lens=torch.tensor([2]),
        num_decodes=0,
        max_query_tokens=2,
        max_context_tokens=2,
        block_tables=tuple(torch.tensor([[block]]) for block in group_blocks),
        write_blocks=tuple(torch.tensor([block, block]) for block in group_blocks),
        logits_rows=torch.empty(0, dtype=torch.int64),
    )
    assert paged.model.logits(paged.model.forward(batch, paged.kv)).shape == (0, BASE["vocab_size"])


def test_others_may_go_between_any_two_layers_and_before_the_logits(checkpoint: tuple[Path, Any]) -> None:
    paged = PagedModel(checkpoint[0], 64 << 20)
    paged.step([(paged.start([1, 2, 3]), 3)])
    assert paged.num_ways_given == BASE["num_hidden_layers"] + 1


def test_a_missing_tensor_is_named() -> None:
    config = ModelConfig.from_hf({**BASE, "model_type": "llama"})
    with pytest.raises(ArtifactError, match="embed"):
        TransformerModel(config, {})
