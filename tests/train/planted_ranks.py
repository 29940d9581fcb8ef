"""A cache of sparse sums of directions, and ways to train on it in one process or in several, as a user would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

import cache
from cache import bf16
from tests.cache.planted import BOS, make_meta, write

T, D, N, LAYER = 17, 16, 48, 3
_ROOT: Final = Path(__file__).parents[2]


def make_cache(path: Path, *, broken: int = -1) -> None:
    """Rows that are sums of 3 of 24 directions around a mean; sequence `broken` holds a row of huge values."""
    rng = np.random.default_rng(5)
    directions_PD = rng.standard_normal((24, D)) / D**0.5
    strength_NTP = rng.uniform(1, 3, (N, T, 24)) * (rng.random((N, T, 24)) < 3 / 24)
    x_NTD = strength_NTP @ directions_PD + 0.1 * rng.standard_normal((N, T, D)) + rng.standard_normal(D)
    if broken >= 0:
        x_NTD[broken, 5:9] = 3e38
    tokens = rng.integers(3, 100, (N, T)).astype(np.int32)
    tokens[:, 0] = BOS
    document = np.repeat(np.arange(N, dtype=np.int32)[:, None], T, axis=1)
    rows = cache.Rows(tokens, document, (np.arange(N) % 6 == 1).astype(np.uint8), None)
    meta = make_meta(context=T, d_model=D, shard_sequences=8)
    write(path, meta, {LAYER: bf16.from_float32(x_NTD.astype(np.float32))}, rows)


SWEEP: Final = """
[defaults]
lr = 1e-3
eps = 1e-4  # far below it Adam makes full steps of what rounding leaves of gradients near 0
dead_every = 5
"feed.seed" = 3

[[run]]
variant = "relu"

[[run]]
variant = "relu_april"

[[run]]
variant = "topk"
k = 3
multi = 0.125
k_aux = 5

[[run]]
variant = "topk"
k = 2
aux = 0.0
resample_every = 10

[[run]]
variant = "batchtopk"
k = 3

[[run]]
variant = "matryoshka"
k = 3

[[run]]
variant = "gated"

[[run]]
variant = "jumprelu"
k = 3
"sae.sparsity" = ["target", "tanh"]
"""


def arguments(folder: Path, out: str, *settings: str, sweep: str = SWEEP) -> list[str]:
    """To train all architectures, a little, on the cache in the folder; AuxK and resampling have work to do."""
    (folder / "sweep.toml").write_text(sweep)
    return [
        *("--sweep-file", str(folder / "sweep.toml"), "--cache", str(folder / "cache"), "--out", str(folder / out)),
        *("--device", "cpu", "--d-sae", "64", "--batch", "64", "--report-every", "10"),
        *("--set", " ".join(settings)),
    ]


def start(program: list[str], processes: int = 2) -> subprocess.Popen[str]:
    """Start a program (`-m train …`, or a script) as `torchrun` does."""
    port = str(_free_port())
    launcher = ["--nproc-per-node", str(processes), "--master-addr", "127.0.0.1", "--master-port", port]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def together(program: list[str], processes: int = 2) -> tuple[int, str]:
    """The same to its end; returns the exit code and all that was said."""
    with start(program, processes) as running:
        said, _ = running.communicate(timeout=300)
    return running.returncode, said


def runs(folder: Path, out: str) -> list[Path]:
    """The runs' folders, by name."""
    return sorted(one.parent for one in (folder / out).glob("*/*/config.json"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
