"""What recording on a GPU rests on, as far as a machine without one can show it; `test_gpu.py` has the rest."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.planted_tape import tensors, waits
from tests.train.planted_training import CASES, as_rows, member, random_rows
from train.graph import FIXED_SHAPES, CudaGraphs
from train.kernels import dense, sparse
from train.member import Member
from train.world import World

FIXED = {name: case for name, case in CASES.items() if case[0] in FIXED_SHAPES}


class Host(TorchDispatchMode):
    """Lists what a GPU's step may not do: wait for a number, or copy between the host's memory and its own."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = None if "_fused_adam" in str(func) else func(*args, **kwargs)  # works in place; has no meta form
        if waits(func, args) or len({one.device for one in tensors((args, kwargs, result))}) > 1:
            self.met.append(str(func))
        return result


@pytest.mark.parametrize("kernels", ["plain", "dense"])
@pytest.mark.parametrize("case", FIXED)
def test_a_step_copies_nothing_to_the_device_and_waits_for_nothing(
    case: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's device without data: whatever needs some fails, and memory is not the host's."""
    if kernels == "dense":
        monkeypatch.setattr(sparse, "_kernels", lambda *_: dense)
    architecture, settings = CASES[case]
    there = member(architecture, **settings)
    one = Member(there.config, there.folder, there.normalisation, device="meta", world=World(), metadata={})
    rows = replace(as_rows(random_rows()), x_BD=random_rows().to("meta"))
    one.steps_done = 1  # at step 0 it looks which latents are dead
    with Host() as host:
        one.step(rows, report=False)
    assert host.met == []
    assert one.steps_done == 2


def test_a_failed_capture_gives_the_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """And work before, in and after warm-up keeps its order. Streams are strings here: there is no GPU."""
    done, current = list[str](), ["usual"]

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = str(name)

        def wait_stream(self, other: "Stream") -> None:
            done.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    @contextmanager
    def capture(graph: object, *, stream: Stream, capture_error_mode: str) -> Any:
        assert capture_error_mode == "thread_local", "the feed's threads go on"
        current[0] = stream.name
        yield
        current[0] = "usual"

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(current[0]))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream.name))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    graphs = CudaGraphs(torch.device("cuda"))
    graphs.warm_up(lambda: done.append("step"))
    assert done == ["side waits for usual", "step", "usual waits for side"]
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": lambda _: done.append("replay")})()
    )
    graphs.record(lambda: done.append(f"recorded on {current[0]}"))()
    assert done[-2:] == ["recorded on side", "replay"]

    def fails() -> None:
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.record(fails)
    assert current == ["usual"]
