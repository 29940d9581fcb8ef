"""Golden losses: twenty steps of every architecture, as they were; a change of any of them wants a reason.

`python -m tests.train.test_golden` writes the files anew: say in the commit what moved and why.
"""

from pathlib import Path

import pytest
import torch

from tests.train.planted_training import D, as_rows, member, planted_batches, planted_directions

FOLDER = Path(__file__).parent / "golden"
STEPS = 20
RUNS = {
    "relu": ("relu", {}),
    "relu_april": ("relu", {"form": "april", "b_dec": "zero"}),
    "topk": ("topk", {"k": 4, "multi": 0.125}),
    "batchtopk": ("batchtopk", {"k": 4}),
    "matryoshka": ("matryoshka", {"k": 4}),
    "gated": ("gated", {}),
    "jumprelu_target": ("jumprelu", {"k": 4}),
    "jumprelu_l0": ("jumprelu", {"sparsity": "l0"}),
    "jumprelu_tanh": ("jumprelu", {"sparsity": "tanh"}),
}


def measure(name: str) -> list[dict[str, float]]:
    """Loss and terms before each step: warm-up, decay and (from step 5 on) dead latents have their part in 20 steps."""
    architecture, settings = RUNS[name]
    one = member(
        architecture,
        d_sae=2 * D,
        steps=STEPS,
        lr=3e-3,
        warmup=5,
        sparsity_warmup=5,
        dead_after=500,
        dead_every=5,
        **settings,
    )
    with torch.no_grad():
        one.sae.b_enc[-8:] = -3.0
    batches, found = planted_batches(planted_directions(24), active=3), list[dict[str, float]]()
    for _ in range(STEPS):
        one.step(as_rows(next(batches)), report=True)
        terms = {key.removeprefix("term/"): value for key, value in one.last.items() if key.startswith("term/")}
        found.append({key: float(value) for key, value in ({"loss": one.last["loss"]} | terms).items()})
    return found


def shown(found: list[dict[str, float]]) -> str:
    """One line a step, one column a term."""
    lines = ["step " + " ".join(f"{name:>15}" for name in found[0])]
    lines += [f"{step:4d} " + " ".join(f"{value:15.8f}" for value in one.values()) for step, one in enumerate(found)]
    return "\n".join(lines) + "\n"


def read(name: str) -> list[dict[str, float]]:
    """What `shown` wrote."""
    head, *lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return [dict(zip(head.split()[1:], map(float, line.split()[1:]), strict=True)) for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_cost_what_they_cost_before(name: str) -> None:
    wanted, found = read(name), measure(name)
    assert len(wanted) == len(found) == STEPS
    for step, (before, now) in enumerate(zip(wanted, found, strict=True)):
        assert now == pytest.approx(before, rel=1e-4, abs=1e-6), f"step {step}"


def test_the_files_are_those_of_the_runs() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == RUNS.keys()


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for one in RUNS:
        (FOLDER / f"{one}.txt").write_text(shown(measure(one)))
