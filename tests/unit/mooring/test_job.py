"""Children that answer, refuse, die, eat memory and never end; and what their parent makes of them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import psutil
import pytest
from support.paths import ROOT

from mooring.child import Limits
from mooring.errors import ArtifactError, InternalError, ShuttingDownError
from mooring.job import Job, run_job
from mooring.units import GIB


@pytest.fixture(autouse=True)
def _support_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))


def job(what: str, max_s: float | None = 60, cpu_s: int = 30) -> Job:
    limits = Limits(GIB, cpu_s)
    return Job("the child", "support.odd_jobs", (what,), lost=ArtifactError, limits=limits, max_s=max_s)


def ignore(stage: str, done: int, total: int) -> None:
    pass


def num_children() -> int:
    return len(
        [each for each in psutil.Process().children() if "support.odd_jobs" in " ".join(each.cmdline())]
    )


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_result_comes_with_progress_and_without_chatter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[tuple[str, int, int]] = []
    result = await run_job(job("result"), lambda *report: seen.append(report))
    assert seen == [("begin", 1, 2)]
    assert "HF_TOKEN" not in result["environment"]
    assert (
        result["environment"]["OPENBLAS_NUM_THREADS"] == "1"
    )  # or its address space would grow with the cores
    assert result["pid"] != os.getpid()
    assert num_children() == 0


async def test_a_refusal_keeps_its_class_and_message() -> None:
    with pytest.raises(ArtifactError, match=r"^it is broken$"):
        await run_job(job("refuse"), ignore)


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("die", "was ended by SIGSEGV"),
        ("eat", r"needs more memory than its reader may take \(1 GiB\)"),
        ("nonsense", "answered nonsense"),
        ("deep nonsense", "answered nonsense"),
    ],
)
async def test_a_death_is_told_by_its_cause(what: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ArtifactError, match=how) as caught:
        await run_job(job(what), ignore)
    assert "secret path" not in caught.value.message
    if what == "die":
        assert "(at stage 'begin')" in caught.value.message
        assert "the child: a secret path?[2J" in caplog.messages
    assert num_children() == 0


async def test_computing_without_end_is_ended() -> None:
    with pytest.raises(ArtifactError, match="took all the processor time"):
        await run_job(job("compute", cpu_s=1), ignore)


async def test_a_child_that_nothing_in_it_could_end_is_killed() -> None:
    with pytest.raises(ArtifactError, match="did not end within 2 s"):
        await run_job(job("hold", max_s=2), ignore)
    assert num_children() == 0


@pytest.mark.parametrize("where", ["", " in a session of its own"])
@pytest.mark.parametrize("then", ["", " hold"])
async def test_what_the_child_started_holds_nobody_up(
    where: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.job._GRACE_S", 0.5)
    heirs: list[int] = []
    num_files = len(os.listdir("/proc/self/fd"))

    def note(stage: str, done: int, total: int) -> None:
        if stage == "heir":
            heirs.append(done)

    async with asyncio.timeout(20):
        call = run_job(job(f"heir{where}{then}", max_s=3), note)
        if then:
            with pytest.raises(ArtifactError, match="did not end within 3 s"):
                await call
        else:
            assert await call is None
    assert num_children() == 0
    [heir] = heirs
    if where:
        os.kill(heir, signal.SIGKILL)  # nobody else could
    else:
        async with asyncio.timeout(10):
            while not has_ended(heir):  # noqa: ASYNC110 - it was killed, and nothing tells when it is gone
                await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= num_files


async def test_a_child_that_is_gone_is_not_waited_for_whoever_holds_its_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mooring.job._GRACE_S", 0.5)
    heirs: list[int] = []
    async with asyncio.timeout(20):
        with pytest.raises(ArtifactError, match="ended with status 3"):
            await run_job(job("fork", max_s=None), lambda stage, done, total: heirs.append(done))
    os.kill(heirs[-1], signal.SIGKILL)


async def test_an_error_of_ours_ends_a_silent_child() -> None:
    def refuse() -> None:
        raise ShuttingDownError("the server shut down")

    with pytest.raises(ShuttingDownError):
        await run_job(job("sleep"), ignore, refuse)
    assert num_children() == 0


async def test_a_cancelled_call_leaves_no_child() -> None:
    begun = asyncio.Event()
    call = asyncio.create_task(run_job(job("sleep"), lambda *report: begun.set()))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert num_children() == 0


async def test_an_end_without_an_answer_is_the_error_that_the_job_names() -> None:
    unlimited = Job("the child", "support.odd_jobs", ("die",))
    with pytest.raises(InternalError, match="SIGSEGV"):
        await run_job(unlimited, ignore)
