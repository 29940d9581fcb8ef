"""The sparse operations of training on a GPU: by Triton, by dense products and in plain PyTorch, over many densities.

    python -m benchmarks.kernels --device cuda --save         # writes benchmarks/results/kernels_cuda.md

Rows have k latents of power-law frequencies, so that some are in most rows. `step` is an encode and a decode with all
gradients of weights, without selecting latents. Below the table: where dense products begin to win (`dense.pays`).
"""

import argparse
import math
import statistics
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import interleaved, machine, table
from train import kernels
from train.kernels import dense, plain, products, sparse

D_SAES, KS = (4096, 18432, 65536, 131072), (16, 32, 64, 128, 320, 640)
TIMES = 10  # runs a round
Run = Callable[[], object]
OPERATIONS = ("gather_sum", "gather_dot", "scatter_sum", "step")


def selected_rows(batch: int, d_sae: int, k: int, device: str) -> kernels.Selected:
    """k latents a row, each with frequency ∝ rank^−½, in no order of rank; values of both signs."""
    frequency_F = (torch.randperm(d_sae, device=device) + 1.0).rsqrt()
    features_n = torch.multinomial(frequency_F.expand(batch, d_sae), k).sort(dim=1).values.flatten()
    offsets = torch.arange(0, batch * k + 1, k, device=device)
    return kernels.Selected(torch.randn(batch * k, device=device), features_n, offsets)


def operations(module: ModuleType, selected: kernels.Selected, x_BD: Tensor, w_FD: Tensor) -> dict[str, Run]:
    """Each operation of one implementation, ready to run."""
    weights = [w_FD.T.detach().requires_grad_(), w_FD.new_zeros(len(w_FD)).requires_grad_()]
    weights += [w_FD.clone().requires_grad_(), x_BD.new_zeros(x_BD.shape[1]).requires_grad_()]

    def step() -> tuple[Tensor, ...]:
        with mock.patch.object(sparse, "_kernels", return_value=module):
            values_n = kernels.encode(x_BD, weights[0], weights[1], selected)
            x_hat_BD = kernels.decode(values_n, selected.features_n, selected.offsets, weights[2], weights[3])
            return torch.autograd.grad((x_hat_BD - x_BD).square().mean(), weights)

    return {
        "gather_sum": lambda: module.gather_sum(*selected, w_FD, x_BD[0]),
        "gather_dot": lambda: module.gather_dot(selected.features_n, selected.offsets, w_FD, x_BD),
        "scatter_sum": lambda: module.scatter_sum(*selected, x_BD, len(w_FD)),
        "step": step,
    }


def repeated(run: Run) -> Run:
    """Many runs to one wait for the GPU."""

    def turn() -> None:
        for _ in range(TIMES):
            run()
        torch.cuda.synchronize()

    return turn


def check(modules: dict[str, ModuleType], selected: kernels.Selected, x_BD: Tensor, w_FD: Tensor) -> None:
    """Stop if an implementation computes something else; dense products are rounded."""
    sums = {name: module.gather_sum(*selected, w_FD, x_BD[0]) for name, module in modules.items()}
    for name, sum_BD in sums.items():
        if not (error := (sum_BD - sums["plain"]).norm() / sums["plain"].norm()) < 2e-2:
            raise SystemExit(f"{name} differs from plain by {error:.2g}: no times of wrong results")


def milliseconds(
    modules: dict[str, ModuleType], size: tuple[int, int, int, int], rounds: int, device: str = "cuda"
) -> dict[str, dict[str, float]]:
    """Median of each operation and implementation at (d_model, d_sae, k, batch)."""
    d_model, d_sae, k, batch = size
    selected = selected_rows(batch, d_sae, k, device)
    x_BD, w_FD = torch.randn(batch, d_model, device=device), torch.randn(d_sae, d_model, device=device)
    check(modules, selected, x_BD, w_FD)
    every, found = {name: operations(module, selected, x_BD, w_FD) for name, module in modules.items()}, {}
    for operation in OPERATIONS:
        timings = interleaved({name: repeated(one[operation]) for name, one in every.items()}, rounds=rounds)
        found[operation] = {name: 1000 * timing.median / TIMES for name, timing in timings.items()}
    return found


def crossing(ratios: dict[float, float]) -> float | None:
    """Density at which the ratio of sparse to dense time passes 1, between two measured ones; both on log scales."""
    for (low, below), (high, above) in pairwise(sorted(ratios.items())):
        if below <= 1 < above:
            return low * math.pow(high / low, math.log(1 / below) / math.log(above / below))
    return None


def verdict(ratios: dict[int, dict[float, float]]) -> list[str]:
    """One line a d_sae, and what to set in `dense.pays`."""
    lines, found = [], []
    for d_sae, by_density in ratios.items():
        at = crossing(by_density)
        if at is None:
            side = "at all of" if min(by_density.values()) > 1 else "at none of"
            lines.append(f"- d_sae {d_sae}: dense wins {side} {min(by_density):.3%} to {max(by_density):.3%}")
            continue
        found.append(at)
        lines.append(f"- d_sae {d_sae}: dense wins from a density of {at:.3%}, 1 in {1 / at:.0f}")
    if found:
        lines.append(f"- `dense.pays`: 1 in {1 / statistics.median(found):.0f} (the median)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--d-model", type=int, default=2304)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--products", default="tf32", choices=products.PRODUCTS, help="precision of dense products")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians count")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kernels_cuda.md")
    arguments = parser.parse_args()
    if arguments.device == "cpu" or not torch.cuda.is_available():
        raise SystemExit("wanted a CUDA device: on a CPU Triton's kernels are interpreted, and times mean nothing")
    import triton

    from train.kernels import triton_sparse

    modules = {"triton": triton_sparse, "dense": dense, "plain": plain}
    out = ["# Sparse operations on a GPU", "", *machine()]
    out += [f"- {torch.cuda.get_device_name()}, triton {triton.__version__}; medians of {arguments.rounds} rounds"]
    size = f"d_model {arguments.d_model}, batch {arguments.batch}, dense products {arguments.products}"
    out += [f"- {size}; milliseconds of {' / '.join(modules)}", ""]
    lines, ratios = [], {d_sae: dict[float, float]() for d_sae in D_SAES}
    for d_sae, k in product(D_SAES, KS):
        with products.using(arguments.products, torch.device("cuda")):
            found = milliseconds(modules, (arguments.d_model, d_sae, k, arguments.batch), arguments.rounds)
        ratios[d_sae][k / d_sae] = found["step"]["triton"] / found["step"]["dense"]
        times = [" / ".join(f"{found[one][name]:.2f}" for name in modules) for one in OPERATIONS]
        lines.append([str(d_sae), str(k), f"{k / d_sae:.3%}", *times])
    out += [*table(["d_sae", "k", "density", *OPERATIONS], lines), "", *verdict(ratios)]
    print("\n".join(out))
    if arguments.save:
        (Path(__file__).parent / "results" / "kernels_cuda.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
