"""Several forward passes at once: the same bits as one after the other, in order, and nothing left behind."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cache
from harvest.lanes import MOST_LANES, Lanes, lanes_for
from harvest.model import load_model
from tests.harvest.test_model import FAMILIES, N_LAYERS, build, tokens
from tests.harvest.tiny import contents, harvest, save_text, save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """What torch has on two cores, whatever it has here."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_text(folder, 120)
    save_tiny_model(folder / "model")
    return folder


def in_lanes(n: int, work: list[Callable[[], Any]]) -> list[Any]:
    with Lanes(CPU, n) as lanes:
        return [future.result() for future in [lanes.start(one) for one in work]]


def lane_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane")]


def padded(batch_BT: Tensor) -> Tensor:
    lengths_B = torch.arange(1, len(batch_BT) + 1) * batch_BT.shape[1] // len(batch_BT)
    return torch.where(torch.arange(batch_BT.shape[1]) < lengths_B[:, None], batch_BT, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_lanes_of_one_thread_give_the_bits_of_one_lane_of_two(family: str, dtype: torch.dtype) -> None:
    model = build.__wrapped__(family, None, dtype)
    packed = [tokens(rows, 32).roll(shift) for rows in (1, 3, 8) for shift in range(4)]
    batches = [*packed, *map(padded, packed)]
    work = [partial(model.residuals, batch_BT, layers=(0, N_LAYERS - 1)) for batch_BT in batches]
    assert torch.get_num_threads() == 2
    one, two = in_lanes(1, work), in_lanes(2, work)
    for x, y in zip(one, two, strict=True):
        assert list(x) == list(y) == [0, N_LAYERS - 1]
        assert all(torch.equal(x[layer], y[layer]) for layer in x)


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_at_once_end_after_their_own_last_block(family: str) -> None:
    """Two threads that want different layers of one model: neither sees or stops the other's pass."""
    model = build.__wrapped__(family)
    calls: dict[tuple[int, int], int] = {}
    beside = threading.Barrier(2)

    def count(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if layer == 0:
                beside.wait(timeout=30)  # both are inside the model
            key = threading.get_ident(), layer
            calls[key] = calls.get(key, 0) + 1

        return hook

    for layer, block in enumerate(model.blocks):
        block.register_forward_pre_hook(count(layer))

    def run(*layers: int) -> tuple[int, list[int]]:
        return threading.get_ident(), list(model.residuals(tokens(), layers=layers))

    with Lanes(CPU, 2) as lanes:
        lanes.start(lambda: None)
        under_way = [lanes.start(partial(run, 1)), lanes.start(partial(run, 0, 2))]
        (first, found), (second, others) = [one.result() for one in under_way]
    assert (found, others) == ([1], [0, 2])
    assert calls == {(first, 0): 1, (first, 1): 1, (second, 0): 1, (second, 1): 1, (second, 2): 1}
    assert [len(block._forward_hooks) for block in model.blocks] == [0] * N_LAYERS


def test_hooks_do_not_pile_up_while_passes_overlap() -> None:
    model = build.__wrapped__("llama")
    most, others = 0, len(model.blocks[1]._forward_hooks)

    def look(*_: Any) -> None:
        nonlocal most
        most = max(most, len(model.blocks[1]._forward_hooks))

    model.blocks[0].register_forward_hook(look)
    in_lanes(4, [partial(model.residuals, tokens(), layers=(1,))] * 40)
    assert most == others + 1
    assert len(model.blocks[1]._forward_hooks) == others


def test_lanes_share_out_the_threads_of_torch() -> None:
    torch.set_num_threads(7)

    def threads(all_here: threading.Barrier) -> int:
        all_here.wait(timeout=30)
        return torch.get_num_threads()

    with Lanes(CPU) as lanes:
        assert lanes.n == MOST_LANES == 4
        lanes.start(lambda: None)
        under_way = [lanes.start(partial(threads, all_here)) for all_here in [threading.Barrier(4)] * 4]
        assert sorted(one.result() for one in under_way) == [1, 2, 2, 2]
    assert torch.get_num_threads() == 7
    started_later: list[int] = []
    thread = threading.Thread(target=lambda: started_later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started_later == [7]


def test_a_single_thread_or_a_gpu_has_one_lane_the_caller() -> None:
    torch.set_num_threads(1)
    for device, ahead in ((CPU, 0), (torch.device("cuda"), 2)):
        with Lanes(device) as lanes:
            assert (lanes.n, lanes.ahead) == (1, ahead)
            assert lanes.start(threading.get_ident).result() == threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_what_a_lane_raises_reaches_the_caller_and_ends_the_threads(error: BaseException) -> None:
    def fail() -> None:
        raise error

    done: list[int] = []
    with pytest.raises(type(error)):
        in_lanes(2, [lambda: None, fail, *[partial(slowly, done)] * 50])
    assert len(done) < 50  # what had not begun is given up
    assert lane_threads() == []


def slowly(done: list[int]) -> None:
    time.sleep(0.02)
    done.append(1)


@pytest.mark.parametrize("change", [{"packing": "pack"}, {"packing": "truncate"}, {"random_weights": True}])
def test_a_cache_has_the_same_bytes_for_any_number_of_lanes(tiny: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        harvest(tiny, tmp_path / str(threads), tokens=50 * 16, **change)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "4")


def test_batches_are_handed_over_in_order_though_a_later_one_is_done_first(tiny: Path, tmp_path: Path) -> None:
    given, finished = load_model(str(tiny / "model")), list[int]()
    residuals, numbers = given.residuals, iter(range(1000))

    def uneven(*arguments: Any, **named: Any) -> dict[int, Tensor]:
        number = next(numbers)
        found = residuals(*arguments, **named)
        time.sleep(0.03 * (number % 2))
        finished.append(number)
        return found

    given.residuals = uneven  # type: ignore[method-assign]
    reader = harvest(tiny, tmp_path / "uneven", model_given=given)
    given.residuals = residuals  # type: ignore[method-assign]
    assert finished != sorted(finished)
    harvest(tiny, tmp_path / "c")
    assert contents(tmp_path / "uneven") == contents(tmp_path / "c")
    assert reader.n_sequences == 20


def test_no_more_batches_are_under_way_than_the_lanes_and_one(tiny: Path, tmp_path: Path) -> None:
    """Counted where they are made: vectors of a batch that neither the writer nor the disk has taken."""
    given, alive, most = load_model(str(tiny / "model")), 0, 0
    residuals, append, lock = given.residuals, cache.CacheWriter.append, threading.Lock()

    def made(*arguments: Any, **named: Any) -> dict[int, Tensor]:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return residuals(*arguments, **named)

    def taken(self: cache.CacheWriter, *arguments: Any, **named: Any) -> None:
        nonlocal alive
        time.sleep(0.01)  # the disk is slower than the model
        append(self, *arguments, **named)
        with lock:
            alive -= 1

    given.residuals = made  # type: ignore[method-assign]
    alive = -2 * 2 - 1  # the plan's two rounds of two lanes, and the final self-check
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.CacheWriter, "append", taken)
        harvest(tiny, tmp_path / "c", model_given=given, tokens=100 * 16)
    assert alive == 0
    assert 2 <= most <= 3


def test_an_interrupted_harvest_in_lanes_ends_its_threads(tiny: Path, tmp_path: Path) -> None:
    given = load_model(str(tiny / "model"))
    given.blocks[1].register_forward_hook(interrupt_after(20))
    with pytest.raises(KeyboardInterrupt):
        harvest(tiny, tmp_path / "c", model_given=given, tokens=100 * 16)
    assert lane_threads() == []
    harvest(tiny, tmp_path / "c", tokens=100 * 16)
    harvest(tiny, tmp_path / "whole", tokens=100 * 16)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def interrupt_after(passes: int) -> Callable[..., None]:
    numbers = iter(range(passes))

    def hook(*_: Any) -> None:
        if next(numbers, None) is None:
            raise KeyboardInterrupt

    return hook


def test_a_row_that_is_not_finite_names_its_place_though_lanes_run_ahead(tiny: Path, tmp_path: Path) -> None:
    given = load_model(str(tiny / "model"))
    residuals, wanted_T = given.residuals, torch.from_numpy(harvest(tiny, tmp_path / "c").tokens(9, 10)[0])

    def spoiled(tokens_BT: Tensor, **named: Any) -> dict[int, Tensor]:
        found = residuals(tokens_BT, **named)
        found[2][(tokens_BT == wanted_T).all(1), 5] = float("nan")
        return found

    given.residuals = spoiled  # type: ignore[method-assign]
    with pytest.raises(cache.CacheError, match=r"layer 2 is NaN or infinite at sequence 9, position 5 \(document \d+"):
        harvest(tiny, tmp_path / "bad", model_given=given)


def test_only_narrow_models_run_in_lanes() -> None:
    assert lanes_for(128) is None
    assert lanes_for(2304) == 1
    with Lanes(CPU, lanes_for(2304)) as lanes:
        assert (lanes.n, lanes.ahead) == (1, 0)
