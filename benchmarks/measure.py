"""How every benchmark measures: contenders interleaved in one process, medians over rounds, ratios of the same run."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one contender."""

    median: float
    fastest: float
    slowest: float


def interleaved(contenders: Mapping[str, Callable[[], object]], *, rounds: int, warm: int = 1) -> dict[str, Timing]:
    """Time each contender once a round, in turn, so that whatever disturbs the machine disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm + rounds):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            taken = time.perf_counter() - begin
            if turn >= warm:
                seconds[name].append(taken)
    return {
        name: Timing(median=statistics.median(taken), fastest=min(taken), slowest=max(taken))
        for name, taken in seconds.items()
    }


def machine() -> list[str]:
    """Hardware and versions, as lines for a result file."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = []
    for name in ("numpy", "zarr", "numcodecs", "tensorstore", "torch", "transformers", "crc32c", "numba"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- hardware: {os.cpu_count()} × {cpu}, {memory:.0f} GiB; load before {os.getloadavg()[0]:.2f}",
        f"- system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"- packages: {', '.join(packages)}",
        f"- command: python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".rstrip(),
    ]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
