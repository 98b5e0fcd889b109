"""The precision that ``dtype = auto`` chooses, from what the machine says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring.server.precision import cpu_flags, cpu_precision, gpu_precision


@pytest.mark.parametrize(
    ("flags", "max_isa", "precision"),
    [
        ({"avx2", "avx512f", "avx512_bf16"}, None, "bf16"),
        ({"avx2", "amx_bf16", "amx_tile"}, None, "bf16"),
        ({"avx2", "fma"}, None, "fp32"),
        ({"avx2", "avx512f", "avx512_vnni"}, None, "fp32"),
        (set(), None, "fp32"),
        ({"avx512_bf16"}, "AVX2", "fp32"),
        ({"avx512_bf16"}, "avx512_core_vnni", "fp32"),
        ({"avx512_bf16"}, "AVX512_CORE_BF16", "bf16"),
        ({"avx512_bf16"}, "ALL", "bf16"),
        ({"avx2"}, "ALL", "fp32"),
    ],
)
def test_a_cpu_takes_bfloat16_if_it_has_instructions_for_it(
    flags: set[str], max_isa: str | None, precision: str
) -> None:
    assert cpu_precision(flags, max_isa).precision == precision


def test_the_reason_names_what_decided() -> None:
    assert "avx512_bf16" in cpu_precision({"avx512_bf16"}).reason
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in cpu_precision({"avx512_bf16"}, "AVX2").reason
    assert "cuda:1" in gpu_precision("cuda:1", (7, 5)).reason
    assert "7.5" in gpu_precision("cuda:1", (7, 5)).reason


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "fp32"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((12, 0), "bf16"), (None, "bf16")],
)
def test_a_gpu_takes_bfloat16_from_capability_8(capability: tuple[int, int] | None, precision: str) -> None:
    assert gpu_precision("cuda:0", capability).precision == precision


def test_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu sse\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx2", "amx_bf16"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(cpuinfo) == frozenset()
    assert cpu_flags(tmp_path / "none") == frozenset()
