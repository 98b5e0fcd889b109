"""The life of a child process that reads what a stranger wrote: limits that the kernel keeps, and an environment
without secrets."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass

from mooring.parent import die_with_parent

__all__ = ["Limits", "child_environment", "limit_this_process"]

_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|_PASS$|_PWD$|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH|DATABASE_URL|PGPASS"
)
_URL_OF_USER = re.compile("://[^/@]+@")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a process.

    Attributes:
        memory_bytes: most bytes of address space, files that it maps included. A larger allocation fails.
        cpu_s: most seconds of computing, over all threads; the kernel kills the process then. None: no limit.
    """

    memory_bytes: int
    cpu_s: int | None = None


def limit_this_process(limits: Limits, parent_pid: int | None = None) -> None:
    """Puts limits on this process for the rest of its life: it cannot lift them again. It ends with its parent
    and leaves no core dump, which would hold what it read.

    Args:
        parent_pid: as for ``die_with_parent``.
    """
    die_with_parent(parent_pid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    if limits.cpu_s is not None:
        # The first limit sends SIGXCPU, by which the parent knows why; the second one cannot be caught.
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))


def child_environment(extra: Mapping[str, str] | None = None, *, downloads: bool = False) -> dict[str, str]:
    """The environment for a process that we start: ours, without the settings of the server and without what looks
    like a secret by its name (``HF_TOKEN``, ``PGPASSWORD``).

    Args:
        extra: variables to set, unless ours sets them already.
        downloads: whether the process fetches something, and so needs proxies and addresses with a password in them.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MOORING_")
        and not _SECRET.search(name.upper())
        and (downloads or not (name.upper().endswith("_PROXY") or _URL_OF_USER.search(value)))
    }
    return {**(extra or {}), **ours}
