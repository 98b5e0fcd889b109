"""The precision that ``dtype = auto`` stands for: the one that serves several streams fastest on this machine.

bfloat16 halves the bytes of weights and KV, and is the faster one if the processor multiplies it in hardware. If it
does not, every product is emulated: 16 streams of SmolLM2-135M get about a fifth of float32's tokens per second on
two cores with AVX2.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from mooring.config import Settings, onednn_max_isa_from_environment
from mooring.server.devices import compute_capability, device_names, is_cpu

__all__ = ["PrecisionChoice", "auto_precision", "cpu_flags", "cpu_precision", "gpu_precision"]

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
# Limits that may be set to oneDNN, torch's library of products, and below which it uses no bfloat16 instruction.
_ISAS_WITHOUT_BFLOAT16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
_FIRST_GPU_WITH_BFLOAT16 = (8, 0)  # compute capability


class PrecisionChoice(NamedTuple):
    """The precision of a 16-bit checkpoint, and a clause that says why."""

    precision: str
    reason: str


def auto_precision(settings: Settings) -> PrecisionChoice:
    """The precision for the first device of the settings."""
    device = device_names(settings)[0]
    if is_cpu(device):
        return cpu_precision(cpu_flags(), onednn_max_isa_from_environment())
    return gpu_precision(device, compute_capability(device))


def cpu_precision(flags: Set[str], max_isa: str | None = None) -> PrecisionChoice:
    """The precision for a CPU.

    Args:
        flags: names of the CPU's features, as in /proc/cpuinfo.
        max_isa: the limit that is set to oneDNN's instructions, if any.
    """
    if max_isa is not None and max_isa.upper() in _ISAS_WITHOUT_BFLOAT16:
        return PrecisionChoice("fp32", f"ONEDNN_MAX_CPU_ISA={max_isa} leaves no bfloat16 instructions")
    found = [flag for flag in BFLOAT16_FLAGS if flag in flags]
    if found:
        return PrecisionChoice("bf16", f"this CPU has bfloat16 instructions ({', '.join(found)})")
    return PrecisionChoice("fp32", "this CPU has no bfloat16 instructions, and to emulate them is slower")


def gpu_precision(device: str, capability: tuple[int, int] | None) -> PrecisionChoice:
    """The precision for a GPU of a compute capability; None if it cannot be read."""
    if capability is None:
        return PrecisionChoice("bf16", f"the compute capability of {device} cannot be read")
    number = ".".join(map(str, capability))
    if capability >= _FIRST_GPU_WITH_BFLOAT16:
        return PrecisionChoice("bf16", f"{device} computes in bfloat16 (compute capability {number})")
    return PrecisionChoice("fp32", f"{device} does not compute in bfloat16 (compute capability {number})")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features that the first CPU of the machine names; none if the file does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(named, "").split())
