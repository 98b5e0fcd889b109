"""A registration's stages, whatever progress is reported, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.control.registration import Registration, RegistrationFiles

NAMES = ("download", "verify", "convert", "check", "copy", "check the copy", "pack", "something else")


def begun(source: str = "/models/m", *, deploys: bool = True) -> Registration:
    registration = Registration("id", "m", source, {} if deploys else None)
    registration.begin()
    return registration


@pytest.mark.parametrize(
    ("source", "deploys", "expected"),
    [
        ("/models/m", True, ["check", "copy", "check the copy", "pack"]),
        ("/models/m.gguf", False, ["convert", "check", "copy", "check the copy"]),
        ("hf://org/m@main", True, ["download", "verify", "check", "copy", "check the copy", "pack"]),
    ],
)
def test_the_stages_that_are_to_come_follow_from_the_source(
    source: str, deploys: bool, expected: list[str]
) -> None:
    registration = begun(source, deploys=deploys)
    assert [each.name for each in registration.stages] == expected
    assert (registration.stage, registration.done_bytes, registration.total_bytes) == ("waiting", 0, 0)


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 9), st.integers(0, 9))),
    st.sampled_from(["done", "failed", "cancelled", "interrupted"]),
)
def test_stages_run_one_after_the_other(reports: list[tuple[str, int, int]], ending: str) -> None:
    registration = begun("hf://org/m")
    seen: list[str] = []
    for report in reports:
        if registration.note(*report):
            seen.append(report[0])
        assert (registration.stage, registration.done_bytes, registration.total_bytes) == report
        states = [each.state for each in registration.stages]
        assert states == sorted(states, key=["done", "running", "waiting"].index)
        assert states.count("running") == 1
    started = [each.name for each in registration.stages if each.state != "waiting"]
    assert (
        started
        == seen
        == [name for place, name in enumerate(started) if started[place - 1 : place] != [name]]
    )
    registration.end(ending)  # type: ignore[arg-type]
    states = [each.state for each in registration.stages]
    assert "running" not in states
    if ending == "done":
        assert set(states) <= {"done"}
    elif seen:
        assert states.count(ending) == 1  # type: ignore[arg-type]


def test_a_file_gives_back_what_was_saved_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    files = RegistrationFiles(tmp_path / "registrations")
    assert files.load() == []
    second, first = begun("/b"), Registration("first", "m", "/a", {"priority": 2}, 1.5, number=3, is_new=True)
    second.created_at_s = 2.0
    second.note("check", 1, 2)
    second.end("failed", "it is no model")
    for each in (second, first, second):
        files.save(each)
    (tmp_path / "registrations" / "x.json").write_text('{"id": 1}')
    assert files.load() == [first, second]
    files.remove("first")
    files.remove("first")
    assert files.load() == [second]
