"""What the command line prints is what there is."""

from __future__ import annotations

import pytest

from mooring.cli.output import console, print_table


def test_reasons_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "[Errno 28] :warning: [/data/b/weights.bin] is [red]not[/red] whole"
    console().print(reason, soft_wrap=True)
    assert capsys.readouterr().out == reason + "\n"
    print_table(("reason",), [(reason,)], "")
    assert capsys.readouterr().out.split() == ["reason", *reason.split()]


def test_no_digit_of_a_number_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([f"number {each}#" for each in range(9)], [["1234567890123"] * 9], "")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert sum(each.isdigit() for each in printed) == 9 * len("01234567890123")
