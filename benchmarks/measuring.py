"""Time own code and peers in turns, print what came out and keep it as JSON.

Other work may share the machine: ratios of CPU time between neighbours in time count, absolute
times do not. A repetition runs every contestant once, in order; what is printed is the median
over repetitions of the ratio within one repetition, with its spread.
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import torch

from undula import atomic

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[1].parent / "shared" / "data"


class Stopwatch:
    """CPU and wall time of one contestant, one entry per repetition, in seconds."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.result: Any = None

    def run(self, work: Callable[[], Any]) -> None:
        cpu, wall = cpu_seconds(), time.perf_counter()
        self.result = work()
        self.cpu.append(cpu_seconds() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def summary(self) -> dict[str, float]:
        return {
            "cpu_min_s": min(self.cpu),
            "cpu_median_s": statistics.median(self.cpu),
            "cpu_total_s": sum(self.cpu),
            "wall_min_s": min(self.wall),
            "wall_median_s": statistics.median(self.wall),
        }


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the programs it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turns(
    contestants: Mapping[str, Callable[[], Any]], repetitions: int
) -> dict[str, Stopwatch]:
    """Run all contestants once unmeasured, then in turns, so that a busy machine hits all alike."""
    watches = {name: Stopwatch() for name in contestants}
    for work in contestants.values():
        work()
    for _ in range(repetitions):
        for name, work in contestants.items():
            watches[name].run(work)
    return watches


def ratio(peer: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Return how many times longer the peer took: median, lowest and highest of all repetitions."""
    ratios = [p / o for p, o in zip(peer, own, strict=True)]
    return {
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "of_totals": sum(peer) / sum(own),
    }


def shown(ratios: Mapping[str, float]) -> str:
    """Write a ratio with its spread."""
    return f"{ratios['median']:.2f} ({ratios['lowest']:.2f} to {ratios['highest']:.2f})"


def one_thread() -> None:
    """Keep torch to one thread."""
    torch.set_num_threads(1)


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a benchmark to ``benchmarks/results/NAME.json``, with machine and date."""
    atomic.write_json(
        RESULTS / f"{name}.json",
        {
            "benchmark": name,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": {
                "processor": _processor(),
                "cores": len(os.sched_getaffinity(0)),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numba": numba.__version__,
            },
            "rows": rows,
        },
    )
    print(f"written to {RESULTS / f'{name}.json'}")


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
