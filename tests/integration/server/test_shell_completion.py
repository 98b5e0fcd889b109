"""Completion of the `mooring` command in the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import need_program

pytestmark = pytest.mark.integration

SCRIPTS = Path(sys.executable).parent  # where `mooring` is installed
# Each asks its shell what it would offer after `mooring dep` and `mooring deployments sl`.
BASH = """
offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mooring_completion mooring; echo "${COMPREPLY[@]}"; }
offer mooring dep
offer mooring deployments sl
"""
FISH = """
complete --do-complete "mooring dep" | string split --fields 1 \\t
complete --do-complete "mooring deployments sl" | string split --fields 1 \\t
"""
# What zsh offers shows on a terminal alone; the words that its function hands on are looked at.
ZSH = """
_arguments() { print -r -- "$1" }
_files() { print nothing }
for line in "mooring dep" "mooring deployments sl"; do
  words=(${=line}) CURRENT=$#words
  _mooring_completion
done
"""


def in_shell(shell: str, script: str, home: Path) -> str:
    program = need_program(shell, shell)
    ended = subprocess.run(
        [program, "-c", script],
        env={"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": str(home), "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_bash_offers_what_there_is(tmp_path: Path) -> None:
    assert in_shell("bash", f'eval "$(mooring --show-completion)"\n{BASH}', tmp_path).split() == [
        "deployments",
        "sleep",
    ]


@pytest.mark.slow
def test_fish_offers_what_there_is(tmp_path: Path) -> None:
    found = in_shell("fish", f"mooring --show-completion | source\n{FISH}", tmp_path)
    assert found.split() == ["deployments", "sleep"]


@pytest.mark.slow
def test_zsh_offers_what_there_is(tmp_path: Path) -> None:
    script = f'autoload -U compinit; compinit -u\neval "$(mooring --show-completion)"\n{ZSH}'
    first, second = (line for line in in_shell("zsh", script, tmp_path).splitlines() if line.startswith("*"))
    assert '"deployments"' in first
    assert '"sleep"' in second


@pytest.mark.parametrize(
    ("shell", "written"),
    [
        ("bash", ".bash_completions/mooring.sh"),
        pytest.param("zsh", ".zfunc/_mooring", marks=pytest.mark.slow),
        pytest.param("fish", ".config/fish/completions/mooring.fish", marks=pytest.mark.slow),
    ],
)
def test_installed_once_it_is_there_in_the_next_shell(tmp_path: Path, shell: str, written: str) -> None:
    assert "installed" in in_shell(shell, "mooring --install-completion; true", tmp_path)
    assert "mooring" in (tmp_path / written).read_text()
    if shell == "bash":
        found = in_shell("bash", f"source ~/.bashrc\n{BASH}", tmp_path)
    elif shell == "fish":
        found = in_shell("fish", FISH, tmp_path)
    else:
        assert "compinit" in (tmp_path / ".zshrc").read_text()
        found = in_shell("zsh", "source ~/.zshrc; print $_comps[mooring]", tmp_path)
        assert found.strip() == "_mooring"
        return
    assert found.split() == ["deployments", "sleep"]
