"""``mooring plan memory``: figures worked by hand, and the command itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from mooring.cli.app import app, main
from mooring.errors import ConfigurationError, InvalidRequestError
from mooring.units import GIB, KIB, MIB
from ops.capacity.memory import (
    DEVICES,
    MemoryPlan,
    builtin_shapes,
    model_from_folder,
    model_from_shape,
    plan_memory,
)

DOCS = ROOT / "docs" / "memory.md"


def planned(shape: str, context: int, batch: int, **options: Any) -> MemoryPlan:
    return plan_memory(model_from_shape(shape), context_tokens=context, batch=batch, **options)


@pytest.mark.parametrize(
    ("shape", "num_parameters", "bytes_per_token"),
    [
        # Published sizes; per token: 2 (K, V) x heads x head dim x 2 bytes x layers.
        ("llama-3-8b", 8_030_261_248, 2 * 8 * 128 * 2 * 32),
        ("llama-3-70b", 70_553_706_496, 2 * 8 * 128 * 2 * 80),
        ("llama-2-7b", 6_738_415_616, 2 * 32 * 128 * 2 * 32),  # MHA
        ("gemma-2b-like", 2_506_172_416, 2 * 1 * 256 * 2 * 18),  # MQA
        ("mistral-7b", 7_241_732_096, 2 * 8 * 128 * 2 * 32),
        ("qwen2.5-0.5b", 494_032_768, 2 * 2 * 64 * 2 * 24),
        ("qwen2.5-7b", 7_615_616_512, 2 * 4 * 128 * 2 * 28),
        ("smollm2-135m", 134_515_008, 2 * 3 * 64 * 2 * 30),
    ],
)
def test_weights_are_those_of_the_published_models_and_a_token_takes_its_heads(
    shape: str, num_parameters: int, bytes_per_token: int
) -> None:
    plan = planned(shape, 16, 1)
    assert plan.kv_bytes_per_token == bytes_per_token
    # Two bytes each; each tensor begins at a multiple of 256.
    assert 0 <= plan.weights_bytes - 2 * num_parameters < 256 * 1000


def test_llama_3_8b_at_8192_tokens_and_batch_32() -> None:
    plan = planned("llama-3-8b", 8192, 32, device_bytes=80 * GIB, reserve_bytes=GIB)
    assert plan.weights_page_bytes == 7659 * PAGE
    assert plan.kv_bytes_per_token == 128 * KIB
    assert plan.kv_bytes_per_request == GIB
    assert plan.kv_bytes == plan.kv_token_bytes == 32 * GIB
    assert (plan.kv_unfilled_bytes, plan.kv_tail_bytes) == (0, 0)
    assert plan.total_bytes == GIB + 7659 * PAGE + PAGE + 32 * GIB
    assert plan.fits
    # 79 GiB less 15,320 MiB of weights and null page leave 64.04 GiB: 64 requests of 1 GiB.
    assert plan.max_batch == 64
    assert plan.max_context == 8192  # all that the model knows
    # The weights are 14.96 GiB: 15 requests of 1 GiB take more, and so do 32 of 480 MiB (3,840 tokens), of which
    # blocks of 16 tokens begin at 3,825.
    assert plan.kv_exceeds_weights_batch == 15
    assert plan.kv_exceeds_weights_context == 3825


def test_part_filled_blocks_and_the_tails_of_pages_are_told_apart() -> None:
    # A token of Qwen2.5-0.5B takes 12 KiB, a block of 16 tokens 192 KiB: ten in a page, 128 KiB of tail.
    plan = planned("qwen2.5-0.5b", 100, 3)
    (group,) = plan.groups
    assert (group.block_tokens, group.block_bytes, group.blocks_per_page) == (16, 192 * KIB, 10)
    assert group.page_tail_bytes == 128 * KIB
    assert group.blocks_per_request == 7  # 112 places for 100 tokens
    assert plan.kv_token_bytes == 300 * 12 * KIB
    assert plan.kv_unfilled_bytes == 3 * 12 * 12 * KIB
    assert plan.kv_bytes == 3 * PAGE  # 21 blocks
    assert plan.kv_tail_bytes == 3 * PAGE - 21 * 192 * KIB
    assert plan.kv_bytes_per_request == PAGE


def test_a_window_keeps_its_tokens_and_one_block_more() -> None:
    plan = planned("mistral-7b", 8192, 2)
    (group,) = plan.groups
    assert (group.kind, group.window_tokens) == ("window", 4096)
    assert group.blocks_per_request == 4096 // 16 + 1
    assert plan.kv_bytes_per_request == 257 * PAGE  # a block is a page here
    assert plan.kv_token_bytes == 2 * 4096 * 128 * KIB
    assert plan.kv_bytes == 2 * 257 * PAGE
    assert planned("mistral-7b", 32_768, 2).kv_bytes == plan.kv_bytes  # it grows no further
    assert plan.kv_exceeds_weights_context is None


def test_alternating_windows_are_two_groups() -> None:
    plan = planned("gemma-2-9b-like", 8192, 1)
    window, full = plan.groups
    assert (window.layers, window.kind, full.layers, full.kind) == (21, "window", 21, "full")
    assert window.bytes_per_token == full.bytes_per_token == 2 * 8 * 256 * 2 * 21
    # 168 KiB a token: four tokens are a block of 672 KiB, three of which leave 32 KiB of a page.
    assert (full.block_tokens, full.blocks_per_page, full.page_tail_bytes) == (4, 3, 32 * KIB)
    assert (window.blocks_per_request, full.blocks_per_request) == (1025, 2048)
    assert plan.kv_bytes == (342 + 683) * PAGE


def test_kv_of_another_dtype_halves_or_doubles() -> None:
    whole, half = (planned("llama-3-8b", 8192, 4, kv_dtype=dtype) for dtype in ("bf16", "fp8"))
    assert half.kv_bytes * 2 == whole.kv_bytes
    assert half.weights_bytes == whole.weights_bytes
    assert planned("llama-3-8b", 8192, 4, precision="fp32").kv_bytes == 2 * whole.kv_bytes


def test_what_does_not_fit_says_so_and_what_would() -> None:
    plan = planned("llama-3-8b", 8192, 32, device_bytes=24 * GIB, reserve_bytes=GIB)
    assert not plan.fits
    assert plan.max_batch == 8  # 24 - 1 - 14.96 GiB
    # 8.04 GiB are 4,116 pages of one block each: 128 for each of the 32.
    assert plan.max_context == 128 * 16
    none = planned("llama-3-70b", 8192, 1, device_bytes=24 * GIB)
    assert (none.fits, none.max_batch, none.max_context) == (False, 0, 0)


def test_more_than_the_model_knows_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="1 to 8,192 tokens"):
        planned("llama-3-8b", 8193, 1)
    with pytest.raises(ConfigurationError, match="llama-3-8b"):
        model_from_shape("llama-9")


def test_every_shape_can_be_planned() -> None:
    for name in builtin_shapes():
        plan = planned(name, 1000, 7, device_bytes=DEVICES["h100"], reserve_bytes=GIB)
        assert plan.kv_bytes == plan.kv_token_bytes + plan.kv_unfilled_bytes + plan.kv_tail_bytes
        assert plan.kv_bytes >= plan.kv_bytes_per_request


def test_a_folder_needs_its_config_only(tmp_path: Path) -> None:
    shape = json.loads((ROOT / "ops" / "capacity" / "model_shapes.json").read_text())["llama-3.2-1b"]
    (tmp_path / "config.json").write_text(json.dumps({**shape["config"], "torch_dtype": "float32"}))
    model = model_from_folder(tmp_path)
    assert model.precision == "fp32"
    assert model.config == model_from_shape("llama-3.2-1b").config


def planned_by_command(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Standard output of ``mooring plan memory`` with these flags."""
    app(["plan", "memory", *flags], standalone_mode=False)
    return capsys.readouterr().out


def test_the_page_says_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/memory.md works an example by hand; the command it names gives the same figures."""
    page = DOCS.read_text()
    command = "mooring plan memory llama-3-8b --context 8192 --batch 32 --device a100-80gb"
    assert command in page
    plan = json.loads(planned_by_command(capsys, *command.split()[3:], "--json"))
    for name in (
        "weights_bytes", "weights_page_bytes", "kv_bytes_per_token", "kv_bytes_per_request", "kv_bytes",
        "total_bytes", "max_batch", "kv_exceeds_weights_batch", "kv_exceeds_weights_context", "workspace_bytes",
    ):  # fmt: skip
        assert f"{plan[name]:,}" in page, f"{name} is {plan[name]:,}"
    table = planned_by_command(capsys, *command.split()[3:])
    assert f"{plan['kv_bytes']:,}" in table
    assert "fits on a100-80gb" in table


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--kv-dtype", "int3"), "--kv-dtype is one of"),
        (("--device", "abacus"), "no device 'abacus'"),
        (("--device", "h100", "--device-memory", "1GiB"), "give one of them"),
        (("--device-memory", "lots"), "not a size"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(
    flags: tuple[str, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["mooring", "plan", "memory", "llama-3-8b", "--context", "16", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert complaint in capsys.readouterr().err


def test_this_machine_is_a_device_too(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(
        planned_by_command(capsys, "smollm2-135m", "--context", "128", "--device", "cpu", "--json")
    )
    assert plan["device_bytes"] > 128 * MIB
    assert plan["reserve_bytes"] == 0


def test_whether_it_fits_is_what_the_ledger_would_say() -> None:
    needed_bytes = planned("llama-3-8b", 64, 1, reserve_bytes=1).total_bytes
    for device_bytes in (needed_bytes - 1, needed_bytes, needed_bytes + PAGE - 1):
        plan = planned("llama-3-8b", 64, 1, reserve_bytes=1, device_bytes=device_bytes)
        ledger = Ledger("cpu", device_bytes)
        sizes = {"reserve": 1, "weights": plan.weights_bytes, "kv": plan.kv_bytes + PAGE}
        granted = [ledger.grant(Owner("weights", name), num_bytes) for name, num_bytes in sizes.items()]
        assert all(granted) == plan.fits
        assert not plan.fits or ledger.leased_bytes == plan.total_bytes
