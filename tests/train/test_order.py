"""The order of an epoch: exact, deterministic, and pinned to what it was when first written."""

import numpy as np
import pytest

from train.errors import TrainError
from train.feed.order import Order, Purpose, generator, phases, runs, tile

GOLDEN_CHAPTERS = [[36, 39, 66], [30, 33, 54, 57]]
GOLDEN_SHUFFLED = [8, 0, 7, 4, 5, 9, 6, 11, 3, 10, 1, 2]
GOLDEN_DEAL = [3, 6, 5, 1, 4, 7, 2, 0]
GOLDEN_PHASES = [238019213991173422, 2065235045767656781, 16318674043028420271]


def make_order(n: int = 23, **changes: int) -> Order:
    values = {"seed": 7, "parts": 1, "block": 2, "pool_sequences": 8, **changes}
    return Order(sequences=np.arange(n) * 3, **values)


@pytest.mark.parametrize("n", [1, 2, 7, 16, 23])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("pool", [6, 8, 100])
def test_every_sequence_is_in_exactly_one_chapter_of_an_epoch(n: int, parts: int, pool: int) -> None:
    parts = min(parts, -(-n // 2))
    order = make_order(n, parts=parts, pool_sequences=pool)
    for epoch in range(3):
        found = [
            order.chapter(part, epoch, chapter) for part in range(parts) for chapter in range(order.chapters(part))
        ]
        assert sorted(np.concatenate(found).tolist()) == order.sequences.tolist()
        for part in range(parts):
            for chapter in range(order.chapters(part)):
                assert (
                    len(order.chapter(part, epoch, chapter)) <= order.chapter_sequences(part) <= max(pool // parts, 2)
                )


def test_blocks_are_consecutive_wanted_sequences_and_chapters_are_of_equal_size() -> None:
    order = make_order(64, pool_sequences=20)
    sizes = []
    for chapter in range(order.chapters(0)):
        numbers = order.chapter(0, 0, chapter)
        sizes.append(len(numbers))
        assert (numbers.reshape(-1, 2)[:, 1] - numbers.reshape(-1, 2)[:, 0] == 3).all()
        assert (numbers.reshape(-1, 2)[:, 0] % 6 == 0).all()
    assert sizes == [16, 16, 16, 16]


def test_epochs_parts_and_seeds_have_orders_of_their_own() -> None:
    first = make_order(200).chapter(0, 0, 0).tolist()
    assert make_order(200).chapter(0, 0, 0).tolist() == first
    assert make_order(200).chapter(0, 1, 0).tolist() != first
    assert make_order(200, seed=8).chapter(0, 0, 0).tolist() != first
    order = make_order(200)
    assert order.shuffled(0, 0, 0, 50).tolist() != order.shuffled(0, 1, 0, 50).tolist()


def test_a_part_serves_the_same_sequences_in_every_epoch() -> None:
    order = make_order(64, parts=2)
    served = [
        sorted(np.concatenate([order.chapter(1, epoch, c) for c in range(order.chapters(1))]).tolist())
        for epoch in range(3)
    ]
    assert served[0] == served[1] == served[2]


def test_the_order_is_the_one_of_the_golden_lists() -> None:
    """Notices a change of ours, and of numpy's generators."""
    order = make_order(parts=2)
    assert [order.chapter(part, 0, 0).tolist() for part in (0, 1)] == GOLDEN_CHAPTERS
    assert order.shuffled(1, 2, 0, 12).tolist() == GOLDEN_SHUFFLED
    assert generator(2**40, Purpose.DEAL).permutation(8).tolist() == GOLDEN_DEAL
    assert phases(7, 3, np.array([0, 1, 10**9])).tolist() == GOLDEN_PHASES


def test_runs_end_at_documents_sequences_and_ineligible_rows() -> None:
    eligible = np.array([[0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], bool)
    document = np.array([[1, 1, 1, 2, 2, 2], [2, 2, 2, 2, 2, 2], [3] * 6, [3] * 6], np.int32)
    first, length = runs(eligible, document)
    assert list(zip(first.tolist(), length.tolist(), strict=True)) == [(1, 2), (3, 1), (5, 1), (6, 5), (23, 1)]
    nothing = runs(np.zeros((2, 6), bool), document[:2])
    assert [len(one) for one in nothing] == [0, 0]


def test_windows_tile_a_run_without_overlap_from_a_random_start() -> None:
    rng = np.random.default_rng(0)
    length = rng.integers(1, 40, 200)
    first = np.cumsum(length) - length
    for window in (1, 2, 5, 8):
        starts = tile(first, length, window, rng.integers(0, 2**63, 200).astype(np.uint64))
        assert len(starts) == (length // window).sum()
        run = np.searchsorted(first, starts, side="right") - 1
        assert (starts + window <= first[run] + length[run]).all()
        same = np.diff(run) == 0
        assert (np.diff(starts)[same] == window).all()
    seen = {int(tile(np.array([0]), np.array([11]), 4, np.array([phase], np.uint64))[0]) for phase in range(8)}
    assert seen == {0, 1, 2, 3}


def test_phases_depend_on_the_row_of_the_cache_alone() -> None:
    rows = np.arange(1000)
    every = phases(3, 1, rows)
    assert np.array_equal(phases(3, 1, rows[500:]), every[500:])
    assert len(set((every % np.uint64(7)).tolist())) == 7
    assert abs(np.bincount((every % np.uint64(2)).astype(int))[0] - 500) < 80
    assert (phases(3, 2, rows) != every).all()


def test_more_parts_than_blocks_are_refused() -> None:
    with pytest.raises(TrainError, match="4 parts need 4 blocks of 2 sequences, the wanted split has 6 sequences"):
        make_order(6, parts=4)
