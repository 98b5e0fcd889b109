"""The samples' training: it learns, repeats itself exactly, and exports what it trained."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ops.samples.export import write_checkpoint
from ops.samples.model import Decoder
from ops.samples.recipes import DRAFT, PYTHONLM, DecoderShape, TrainingPlan
from ops.samples.sample import describe
from ops.samples.train import WithoutBfloat16, deterministic_torch, new_decoder, train, windows
from ops.samples.vocabulary import UsedVocabulary, principal_embedding

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_positions": 128,
}
SHAPES = [replace(recipe.shape, **SMALL) for recipe in (PYTHONLM, DRAFT)]  # type: ignore[arg-type]
PLAN = TrainingPlan(
    num_steps=30,
    batch_sequences=4,
    sequence_tokens=32,
    matrix_lr=0.02,
    embedding_lr=0.02,
    head_lr=0.01,
    warmup_share=0.1,
    cooldown_share=0.3,
    seed=3,
)
STEEP_PLAN = replace(
    PLAN, num_steps=12, batch_sequences=2, matrix_lr=0.04, embedding_lr=0.04, head_lr=0.02
)  # short, and run on one thread: test processes run beside each other
VOCAB_SIZE = 64
STREAM = np.tile(np.arange(VOCAB_SIZE, dtype=np.int32), 40)  # what follows is always one more


def trained(shape: DecoderShape, plan: TrainingPlan, num_threads: int) -> tuple[Decoder, list[float]]:
    losses: list[float] = []
    with deterministic_torch(plan.seed, num_threads):
        decoder = new_decoder(shape, VOCAB_SIZE)
        train(decoder, windows(STREAM, plan), plan, lambda _, loss: losses.append(loss))
    return decoder, losses


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.model_type)
def test_it_learns_and_transformers_computes_the_same_logits(shape: DecoderShape, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    decoder, losses = trained(shape, STEEP_PLAN, num_threads=1)
    assert losses[0] == pytest.approx(np.log(VOCAB_SIZE), abs=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    write_checkpoint(decoder, shape, tmp_path, bos_id=None, eos_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert theirs.config.model_type == shape.model_type
    rounded = {name: tensor.bfloat16().float() for name, tensor in decoder.state_dict().items()}
    decoder.load_state_dict(rounded)
    token_ids = torch.from_numpy(STREAM[None, 7:107].astype(np.int64))
    with torch.no_grad():
        torch.testing.assert_close(decoder(token_ids), theirs(token_ids).logits, atol=1e-4, rtol=1e-4)


def test_the_same_plan_gives_the_same_bytes_and_another_seed_does_not() -> None:
    def digest(plan: TrainingPlan) -> str:
        state = trained(SHAPES[0], plan, num_threads=2)[0].state_dict()
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()

    short = replace(STEEP_PLAN, num_steps=3)
    torch.manual_seed(99)  # what the process did before does not matter
    first = digest(short)
    assert first == digest(short)
    assert first != digest(replace(short, seed=4))


def test_deterministic_mode_is_left_as_it_was_found() -> None:
    with deterministic_torch(0, num_threads=2):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


def test_a_pass_takes_every_window_once() -> None:
    plan = replace(PLAN, batch_sequences=1)
    batches = windows(np.arange(33 * 10, dtype=np.int32), plan)
    first_pass = [next(batches)[0] for _ in range(9)]
    assert len({int(window[0]) for window in first_pass}) == 9
    assert all(torch.equal(window, torch.arange(window[0], window[0] + 33)) for window in first_pass)


def test_a_stream_too_short_for_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        next(windows(np.zeros(40, dtype=np.int32), PLAN))


def test_rates_rise_stay_and_fall_to_nearly_nothing() -> None:
    rates = [PLAN.rate_at(step) for step in range(PLAN.num_steps)]
    assert rates[0] < rates[1] < 1.0
    assert rates[10] == 1.0
    assert 0 < rates[-1] < 0.2


def test_the_class_of_unused_ids_is_the_whole_vocabularys_softmax() -> None:
    shape, vocab_size = SHAPES[1], 50
    used = UsedVocabulary.of_stream(np.array([3, 9, 3, 41, 20], dtype=np.int32), vocab_size)
    assert used.classes(np.array([41, 3], dtype=np.int32)).tolist() == [3, 0]
    torch.manual_seed(0)
    decoder = new_decoder(shape, used.num_classes)
    torch.nn.init.normal_(decoder.lm_head.weight)
    embedding = torch.randn(vocab_size, shape.hidden_size)
    whole = used.expand(decoder, shape, embedding)
    assert torch.equal(whole.model.embed_tokens.weight[0], embedding[0])
    targets = torch.tensor([3, 9, 41])
    classes = torch.from_numpy(used.classes(targets.numpy()).astype(np.int64))
    with torch.no_grad():
        small = decoder(classes[None])[0] + used.logit_bias()
        large = whole(targets[None])[0]
    torch.testing.assert_close(
        functional.cross_entropy(small, classes), functional.cross_entropy(large, targets)
    )


def test_principal_axes_keep_the_neighbours() -> None:
    torch.manual_seed(0)
    low_rank = torch.randn(40, 4) @ torch.randn(4, 24)
    projected = principal_embedding(low_rank, 4, rms=0.5)
    assert float(projected.square().mean().sqrt()) == pytest.approx(0.5)

    def distances(rows: Tensor) -> Tensor:
        apart = torch.cdist(rows, rows)
        return apart / apart.max()

    torch.testing.assert_close(distances(projected), distances(low_rank), atol=1e-3, rtol=1e-3)


@pytest.fixture
def whole_samples(tmp_path: Path) -> list[tuple[str, int]]:
    sizes = []
    for recipe, vocab_size in ((PYTHONLM, PYTHONLM.vocab_size), (DRAFT, 49152)):
        folder = tmp_path / recipe.name
        folder.mkdir()
        write_checkpoint(Decoder(recipe.shape, vocab_size), recipe.shape, folder, None, 0)
        sample = describe(recipe.name, folder)
        sizes.append((recipe.name, sample.weights_bytes + sample.kv_bytes))
    return sizes


def test_any_two_samples_fit_the_default_budget_and_three_do_not(
    whole_samples: list[tuple[str, int]],
) -> None:
    budget_mib, smollm2_mib = 512, 257 + 206  # its weights, and its KV for 8192 tokens in whole pages
    pythonlm_mib, draft_mib = (num_bytes / 2**20 for _, num_bytes in whole_samples)
    assert smollm2_mib + max(pythonlm_mib, draft_mib) < budget_mib - 4
    assert smollm2_mib + pythonlm_mib + draft_mib > budget_mib + 8


def test_muon_without_bfloat16_goes_the_same_way_more_exactly() -> None:
    def after_a_step() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.zeros(48, 32))
        matrix.grad = torch.randn(48, 32, generator=generator)
        torch.optim.Muon([matrix], lr=1.0, weight_decay=0.0, ns_steps=5).step()
        return matrix.detach()

    in_bfloat16 = after_a_step()
    with WithoutBfloat16():
        in_float32 = after_a_step()
    assert not torch.equal(in_bfloat16, in_float32)
    torch.testing.assert_close(in_bfloat16, in_float32, rtol=0.1, atol=0.02)
