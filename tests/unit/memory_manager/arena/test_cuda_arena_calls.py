"""The CUDA arena's calls against a stand-in that enforces the driver's documented rules.

It shows what a machine without a GPU can show: the order of calls, that nothing leaks, and that errors
leave the books exact. The tests marked ``gpu`` in test_arena.py run the same arena on the real driver.
"""

# ruff: noqa: N802 (the stand-in has the names of the driver)

from __future__ import annotations

import enum
import itertools
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from engines.torch.weights.core_turns import CoreTurns
from engines.torch.weights.host_copy_view import HostCopyView
from memory_manager.arena.cuda_arena import CudaArena
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.memfd import open_to_read
from mooring.errors import ConfigurationError, InsufficientMemoryError, InternalError

CUresult = enum.Enum(
    "CUresult",
    "CUDA_SUCCESS CUDA_ERROR_INVALID_VALUE CUDA_ERROR_OUT_OF_MEMORY CUDA_ERROR_NO_DEVICE "
    "CUDA_ERROR_INVALID_DEVICE",
)
OK, INVALID, FULL = (
    CUresult.CUDA_SUCCESS,
    CUresult.CUDA_ERROR_INVALID_VALUE,
    CUresult.CUDA_ERROR_OUT_OF_MEMORY,
)


class Driver(types.ModuleType):
    """``cuda.bindings.driver`` with one GPU of ``num_pages`` pages."""

    CUresult = CUresult

    def __init__(self, num_pages: int) -> None:
        super().__init__("cuda.bindings.driver")
        self.num_pages = num_pages
        self.granularity = PAGE
        self.reserved: dict[int, int] = {}
        self.handles: set[int] = set()
        self.mapped: dict[int, int] = {}  # address of a page -> handle
        self.readable: set[int] = set()
        self.contexts = 0
        self.pinned: dict[int, int] = {}
        self.refuses_to_pin = False
        self._numbers = itertools.count(1)
        location = types.SimpleNamespace
        self.CUmemAllocationProp = lambda: types.SimpleNamespace(location=location())
        self.CUmemAccessDesc = types.SimpleNamespace
        self.CUmemAllocationType = types.SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
        self.CUmemLocationType = types.SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
        self.CUmemAccess_flags = types.SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
        self.CUmemAllocationGranularity_flags = types.SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)

    def cuInit(self, flags: int) -> tuple[CUresult]:
        return (OK,)

    def cuDeviceGet(self, ordinal: int) -> tuple[CUresult, int]:
        return (OK if ordinal == 0 else CUresult.CUDA_ERROR_INVALID_DEVICE), ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[CUresult, str]:
        self.contexts += 1
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[CUresult]:
        self.contexts -= 1
        return (OK,)

    def cuCtxSetCurrent(self, context: str) -> tuple[CUresult]:
        return (OK,)

    def cuMemGetAllocationGranularity(self, properties: object, option: int) -> tuple[CUresult, int]:
        return OK, self.granularity

    def cuMemAddressReserve(self, size: int, alignment: int, hint: int, flags: int) -> tuple[CUresult, int]:
        address = next(self._numbers) << 40
        self.reserved[address] = size
        return OK, address

    def cuMemAddressFree(self, address: int, size: int) -> tuple[CUresult]:
        inside = any(address <= page < address + size for page in self.mapped)
        return (OK if self.reserved.pop(address, None) == size and not inside else INVALID,)

    def cuMemCreate(self, size: int, properties: object, flags: int) -> tuple[CUresult, int]:
        if size != PAGE:
            return INVALID, 0
        if len(self.handles) == self.num_pages:
            return FULL, 0
        handle = next(self._numbers)
        self.handles.add(handle)
        return OK, handle

    def cuMemRelease(self, handle: int) -> tuple[CUresult]:
        if handle not in self.handles or handle in self.mapped.values():
            return (INVALID,)
        self.handles.remove(handle)
        return (OK,)

    def cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> tuple[CUresult]:
        known = handle in self.handles and handle not in self.mapped.values()
        if not known or address in self.mapped or size != PAGE or offset:
            return (INVALID,)
        self.mapped[address] = handle
        return (OK,)

    def cuMemSetAccess(self, address: int, size: int, access: list[object], count: int) -> tuple[CUresult]:
        pages = range(address, address + size, PAGE)
        if count != len(access) or any(page not in self.mapped for page in pages):
            return (INVALID,)
        self.readable.update(pages)
        return (OK,)

    def cuMemUnmap(self, address: int, size: int) -> tuple[CUresult]:
        pages = range(address, address + size, PAGE)
        if not pages or any(page not in self.mapped for page in pages):
            return (INVALID,)
        for page in pages:
            del self.mapped[page]
            self.readable.discard(page)
        return (OK,)

    def cuMemHostRegister(self, address: int, size: int, flags: int) -> tuple[CUresult]:
        # As a GPU on a bus does, which knows no memory that it may only read.
        if self.refuses_to_pin or flags or address in self.pinned or not is_writable(address):
            return (INVALID,)
        self.pinned[address] = size
        return (OK,)

    def cuMemHostUnregister(self, address: int) -> tuple[CUresult]:
        return (OK if self.pinned.pop(address, None) else INVALID,)


def is_writable(address: int) -> bool:
    """Whether this process may write there and others would see it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, rest = line.partition("-")
        if int(start, 16) <= address < int(rest.split()[0], 16):
            return rest.split()[1] == "rw-s"
    return False


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver(num_pages=6)
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    return driver


def test_committed_pages_are_mapped_and_readable_and_nothing_is_left_at_close(driver: Driver) -> None:
    arena = CudaArena(6 * PAGE, stock_limit_bytes=2 * PAGE)
    addresses = arena.reserve(8 * PAGE)
    arena.commit(addresses, 1, 4)
    assert driver.readable == {addresses.address + page * PAGE for page in range(1, 5)}
    arena.release(addresses, 2, 3)
    assert driver.readable == {addresses.address + PAGE}
    assert len(driver.handles) == 3  # one committed, two in the stock; the rest left
    arena.commit(addresses, 2, 2)
    assert len(driver.handles) == 3  # from the stock: nothing was created
    arena.close()
    assert (driver.reserved, driver.handles, driver.mapped, driver.contexts) == ({}, set(), {}, 0)


def test_a_gpu_without_the_memory_is_told_and_keeps_what_it_had(driver: Driver) -> None:
    arena = CudaArena(100 * PAGE)  # more than the GPU has: another process took it
    addresses = arena.reserve(100 * PAGE)
    arena.commit(addresses, 0, 4)
    with pytest.raises(InsufficientMemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        arena.commit(addresses, 4, 3)
    assert arena.committed_bytes == len(driver.mapped) * PAGE == 4 * PAGE
    assert arena.stock_bytes + arena.committed_bytes == len(driver.handles) * PAGE
    arena.commit(addresses, 4, 2)


def test_a_mapping_that_fails_halfway_is_undone(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = CudaArena(6 * PAGE)
    addresses = arena.reserve(6 * PAGE)
    third = addresses.address + 2 * PAGE
    honest = driver.cuMemMap
    monkeypatch.setattr(
        driver,
        "cuMemMap",
        lambda address, *rest: (INVALID,) if address == third else honest(address, *rest),
    )
    with pytest.raises(InternalError, match="cuMemMap: CUDA_ERROR_INVALID_VALUE"):
        arena.commit(addresses, 0, 4)
    assert driver.mapped == {}
    assert driver.handles == set()
    assert arena.committed_bytes == arena.stock_bytes == 0


def test_machines_that_cannot_are_the_operators_to_mend(driver: Driver) -> None:
    with pytest.raises(ConfigurationError, match="no such GPU"):
        CudaArena(PAGE, device_index=7)
    driver.granularity = 32 * PAGE
    with pytest.raises(ConfigurationError, match="pages of"):
        CudaArena(PAGE)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_host_copy_is_pinned_until_it_is_closed(
    refuses: bool, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.refuses_to_pin = refuses
    own_fd = os.memfd_create("host-copy")
    os.write(own_fd, b"x" * 5_000)
    fd = open_to_read(own_fd)  # as a worker gets it
    view = HostCopyView(fd, 5_000, to_be_pinned=True)
    os.close(own_fd)
    os.close(fd)  # the mapping keeps the memory
    view.pin(0)
    assert list(driver.pinned.values()) == ([] if refuses else [5_000])
    assert ("is not pinned, so wakes are slower" in caplog.text) == refuses
    copied = torch.zeros(PAGE, dtype=torch.uint8)
    view.copy_to_host(copied, 3, CoreTurns(), 0.5)
    assert copied.numpy().tobytes() == b"x" * 5_000 + bytes(PAGE - 5_000)
    view.close()
    assert (driver.pinned, driver.contexts) == ({}, 0)
