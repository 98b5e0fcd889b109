"""``kill -9`` of the worker while streams run: do all streams finish, and with the same tokens?

``python -m benchmarks.worker_death --out DIR`` starts a server with the three sample models in fp32, runs 16
streams over them undisturbed, half greedy and half sampled, and again with the worker killed in the middle.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import Report
from benchmarks.streams import Agreement, Stream, count_agreements, draw_streams, run_streams
from ops.running_server import RunningServer
from ops.samples import ensure_samples

__all__ = ["measure"]

NUM_STREAMS = 16
TOKENS_BEFORE_DEATH = 4  # every stream has as many when the worker is killed


def measure(
    server: RunningServer, streams: list[Stream], tokens_before_death: int = TOKENS_BEFORE_DEATH
) -> dict[str, float]:
    """Runs ``streams`` undisturbed and again with a death in the middle; returns the figures."""
    references = asyncio.run(run_streams(server.grpc_target, streams, len(streams)))
    progress = [0] * len(streams)
    victims: list[int] = []

    def kill_once_all_run(index: int, num_tokens: int) -> None:
        progress[index] = num_tokens
        if not victims and min(progress) >= tokens_before_death:
            victims.extend(pids)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    pids = server.worker_pids()
    started_s = time.monotonic()
    outcomes = asyncio.run(run_streams(server.grpc_target, streams, len(streams), kill_once_all_run))
    agreements = count_agreements(streams, references, outcomes)
    for stream, outcome in zip(streams, outcomes, strict=True):
        if outcome.error:
            print(f"{stream.model}: {outcome.error}")
    return {
        "streams": len(streams),
        "workers_killed": len(victims),
        "finished": len(streams) - agreements[Agreement.LOST],
        "equal": agreements[Agreement.EQUAL],
        "near_ties": agreements[Agreement.NEAR_TIE],
        "altered": agreements[Agreement.ALTERED],
        "seconds_with_death": time.monotonic() - started_s,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("bench-out/worker_death"),
    samples: Annotated[Path | None, typer.Option(help="Folder of the sample models.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Output of each stream, in tokens.")] = 48,
) -> None:
    """Kill the worker during 16 streams over the three sample models."""
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as scratch:
        folders: Mapping[str, Path] = {
            sample.name: sample.folder for sample in ensure_samples(samples or Path(scratch) / "samples")
        }
        flags = ["--dtype", "float32", "--memory-budget", "2GiB"]
        vocab_size = 2000  # ids that every sample's vocabulary has
        streams = draw_streams(tuple(folders), 6, max_tokens, seed=0, vocab_size=vocab_size)[:NUM_STREAMS]
        with RunningServer(Path(scratch) / "data", folders, flags) as server:
            figures = measure(server, streams)
    report = Report(out, "kill -9 of the worker during streams")
    report.text(
        f"{NUM_STREAMS} streams of {max_tokens} tokens over {', '.join(folders)} in fp32, half of them greedy and "
        f"half at temperature 1, all at once; the worker is killed when each has {TOKENS_BEFORE_DEATH} tokens. "
        "Compared with the same streams undisturbed; a near tie is two candidates within 1e-4."
    )
    for name, value in figures.items():
        report.figure(name, value)
        print(f"{name}: {value:g}")
    report.write()


if __name__ == "__main__":
    typer.run(main)
