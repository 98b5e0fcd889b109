"""Both ways in which weights come to a CPU: a copy into the arena, and the host copy's own pages."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.gpu import GPU
from support.torch_engines import engine_driver, tiny_model

from engines.torch.weights.core_turns import CoreTurns
from engines.torch.weights.host_copy_view import _PIECE_BYTES, HostCopyView
from engines.torch.weights.packed_file import PackedFile
from engines.torch.weights.weights import WeightsRegion
from memory_manager.arena.cuda_arena import CudaArena
from memory_manager.arena.host_arena import HostArena
from memory_manager.arena.paged_arena import PagedArena
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.word_sum import word_sum
from mooring.errors import ArtifactError, ConflictError, HostCopyAlteredError, InsufficientMemoryError


def host_copy(content: bytes, *, sealed: bool = True) -> int:
    fd = os.memfd_create("host-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def is_cached(fd: int) -> bool:
    """Whether the system has the first bytes of a file in memory."""
    try:
        return os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False


@contextmanager
def region(
    num_bytes: int, *, may_borrow: bool, checksum: int | None = None, device: str = "cpu"
) -> Iterator[tuple[WeightsRegion, PagedArena]]:
    kind = HostArena if device == "cpu" else CudaArena
    arena: PagedArena = kind(8 * PAGE, stock_limit_bytes=8 * PAGE)
    weights = WeightsRegion(
        arena,
        num_bytes,
        copy_chunk_bytes=PAGE,
        num_copy_threads=2,
        core_turns=CoreTurns(),
        may_borrow=may_borrow,
        checksum=checksum,
    )
    yield weights, arena
    weights.close()
    arena.close()


@pytest.mark.parametrize(
    ("may_borrow", "sealed", "own_pages"),
    [(True, True, 0), (False, True, 3), (True, False, 3)],
    ids=["remapped", "copied", "copied: not sealed"],
)
def test_weights_come_whole_and_go_whole(may_borrow: bool, sealed: bool, own_pages: int) -> None:
    content = os.urandom(2 * PAGE + 12_345)
    fd = host_copy(content, sealed=sealed)
    with region(len(content), may_borrow=may_borrow) as (weights, arena):
        for _ in range(3):
            weights.restore(fd, 3 * PAGE, core_share=0.5)
            # The device's books show the same bytes either way; the memory behind them is the arena's or not.
            assert weights.committed_bytes == arena.committed_bytes == 3 * PAGE
            assert arena.allocated_bytes() == own_pages * PAGE
            assert weights._memory[: len(content)].numpy().tobytes() == content
            assert weights.release() == 3 * PAGE
            assert weights.committed_bytes == arena.committed_bytes == 0
    os.close(fd)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_weights_come_from_the_packed_file_which_the_page_cache_does_not_keep(
    device: str, tmp_path: Path
) -> None:
    content = os.urandom(3 * PAGE + 12_345)
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # what is not on the disk yet cannot leave the cache
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    is_on_disk = not is_cached(fd)
    # It is never borrowed: its pages are the system's.
    with region(len(content), may_borrow=True, device=device) as (weights, arena):
        weights.restore(fd, 4 * PAGE, core_share=0.5, from_file=True)
        assert arena.committed_bytes == weights.committed_bytes == 4 * PAGE
        assert weights._memory[: len(content)].cpu().numpy().tobytes() == content
        assert not (is_on_disk and is_cached(fd))
        assert weights.release() == 4 * PAGE
        os.truncate(path, 2 * PAGE)
        with pytest.raises(ArtifactError, match="the packed file ends at byte"):
            weights.restore(fd, 4 * PAGE, core_share=0.5, from_file=True)
        assert arena.committed_bytes == weights.committed_bytes == 0
    os.close(fd)


def test_a_packed_file_that_shrinks_while_it_is_read_is_the_artifacts_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"x" * PAGE)
    fd = os.open(path, os.O_RDONLY)
    file = PackedFile(fd, PAGE)
    os.truncate(path, PAGE // 2)
    with pytest.raises(ArtifactError, match=f"shrank to {PAGE // 2} bytes"):
        file.read_to_host(torch.empty(PAGE, dtype=torch.uint8), 2, CoreTurns(), 0.5)
    os.close(fd)


@pytest.mark.parametrize("may_borrow", [True, False])
def test_what_is_short_is_refused_and_leaves_nothing(may_borrow: bool) -> None:
    fd = host_copy(b"x" * PAGE)
    with region(2 * PAGE, may_borrow=may_borrow) as (weights, arena):
        with pytest.raises(ArtifactError, match="the host copy ends at byte 2097152"):
            weights.restore(fd, 2 * PAGE, core_share=0.5)
        with pytest.raises(InsufficientMemoryError):
            weights.restore(fd, PAGE, core_share=0.5)
        assert arena.committed_bytes == weights.committed_bytes == 0
    os.close(fd)


@pytest.mark.parametrize("num_bytes", [PAGE, 2 * PAGE - 3])
@pytest.mark.parametrize(
    ("device", "may_borrow"), [("cpu", True), ("cpu", False), pytest.param("cuda", False, marks=GPU)]
)
def test_weights_that_something_wrote_to_are_refused_and_leave_nothing(
    device: str, may_borrow: bool, num_bytes: int
) -> None:
    content = os.urandom(num_bytes)
    fd = host_copy(content)
    checksum = word_sum(memoryview(content))
    with region(num_bytes, may_borrow=may_borrow, checksum=checksum, device=device) as (weights, arena):
        for stray in (0, num_bytes - 1):
            weights.restore(fd, 2 * PAGE, core_share=0.5)
            assert weights._memory[:num_bytes].cpu().numpy().tobytes() == content
            weights.release()
            os.pwrite(fd, bytes([content[stray] ^ 1]), stray)
            with pytest.raises(HostCopyAlteredError):
                weights.restore(fd, 2 * PAGE, core_share=0.5)
            assert weights.committed_bytes == arena.committed_bytes == 0
            os.pwrite(fd, content[stray : stray + 1], stray)
    os.close(fd)


def test_the_host_copy_outlives_whoever_maps_it() -> None:
    content = os.urandom(PAGE)
    fd = host_copy(content)
    with region(PAGE, may_borrow=True) as (weights, _):
        weights.restore(fd, PAGE, core_share=0.5)
    assert os.pread(fd, PAGE, 0) == content
    os.close(fd)


class _ShortTurns(CoreTurns):
    """Each is over at once."""

    num_turns = 0

    @contextmanager
    def copy(self, share: float) -> Iterator[Callable[[], bool]]:
        self.num_turns += 1
        yield lambda: True


def test_a_copy_whose_turn_is_over_goes_on_in_the_next_one_after_a_piece_at_least() -> None:
    content = os.urandom(2 * _PIECE_BYTES + 12_345)
    fd = host_copy(content)
    view = HostCopyView(fd, len(content))
    copied, turns = torch.zeros(len(content), dtype=torch.uint8), _ShortTurns()
    view.copy_to_host(copied, 1, turns, 0.5)
    assert turns.num_turns == 3
    assert copied.numpy().tobytes() == content
    view.close()
    os.close(fd)


@pytest.mark.parametrize("cpu_wake", ["remap", "copy"])
def test_a_model_says_the_same_however_it_was_woken(cpu_wake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "host_copy", lambda self: host_copy(self.packed))
    prompt = [5, 17, 203, 44]
    with engine_driver(cpu_wake=cpu_wake) as driver:
        held_bytes = driver.load(model)
        driver.submit(1, prompt)
        driver.run()
        driver.engine.sleep("m")
        assert driver.engine.wake("m", held_bytes) == held_bytes
        driver.submit(2, prompt)
        driver.run()
        assert driver.tokens[1] == driver.tokens[2] == model.generate(prompt, 20)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_model_without_a_host_copy_serves_on_and_can_only_be_unloaded(
    from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    path = tmp_path / "weights.bin"
    path.write_bytes(model.packed)
    opened: list[int] = []

    def source(self: object) -> int:
        opened.append(os.open(path, os.O_RDONLY) if from_file else host_copy(model.packed))
        return opened[-1]

    monkeypatch.setattr(type(model), "host_copy", source)
    with engine_driver(cpu_wake="copy") as driver:
        held_bytes = driver.load(model, from_file=from_file)
        driver.engine.drop_host_copy("m")
        driver.engine.drop_host_copy("m")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])
        driver.submit(1, [5, 17, 203, 44])
        driver.run()
        assert driver.tokens[1] == model.generate([5, 17, 203, 44], 20)
        driver.engine.sleep("m")
        with pytest.raises(ConflictError, match="no host copy"):
            driver.engine.wake("m", held_bytes)
        driver.engine.unload("m")
        assert driver.load(model, from_file=from_file) == held_bytes
