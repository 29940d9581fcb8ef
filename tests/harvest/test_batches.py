"""The batches of a process's jobs: in order, inside shards, from one stream as long as that is the nearest."""

from typing import Any

import numpy as np
import pytest

import cache
from harvest.batches import Batch, Batches
from harvest.streams import Sequences
from harvest.tokens import TokenBlock

S, T = 8, 4


class Numbered(Sequences):
    """Sequence i is i, T times over; the text ends before `end`."""

    def __init__(self, at: int, end: int = 1000) -> None:
        self.at, self.end, self.taken, self.closed = at, end, list[int](), False

    def move(self, to: int) -> None:
        self.at = min(to, self.end)

    def take(self, n: int) -> TokenBlock:
        numbers = np.arange(self.at, min(self.at + n, self.end), dtype=np.int32)
        self.taken += numbers.tolist()
        self.at += len(numbers)
        tokens = np.repeat(numbers[:, None], T, axis=1)
        return TokenBlock(tokens, tokens, np.zeros(len(numbers), np.uint8), np.zeros(len(numbers), np.uint8))

    def cursor(self) -> dict[str, Any]:
        return {"sequences": self.at}

    def close(self) -> None:
        self.closed = True


class Left(cache.CacheWriter):
    """A writer of which only the cursors are asked: shards that were there when it was opened."""

    def __init__(self, *shards: int) -> None:
        self.shards = shards

    def cursor_before(self, shard: int) -> tuple[int, dict[str, Any]]:
        ends = [(k + 1) * S for k in self.shards if k < shard]
        return (max(ends), {"sequences": max(ends)}) if ends else (0, {})


def read(shards: list[int], there: Left, end: int = 1000) -> tuple[list[Batch], list[tuple[int, Numbered]], int | None]:
    """Batches of 3 of these shards; the streams that were opened, each with where; and where the text ended."""
    opened: list[tuple[int, Numbered]] = []

    def open_at(job: cache.Job) -> Numbered:
        opened.append((there.cursor_before(job.shard)[0], Numbered(min(job.start, end), end)))
        return opened[-1][1]

    jobs = [cache.Job(shard=k, start=k * S, stop=(k + 1) * S, layers=(1,), rows=True) for k in shards]
    with Batches(there, jobs, 3, open_at) as batches:
        found = list(batches)
    assert all(stream.closed for _, stream in opened)
    return found, opened, batches.end


def test_batches_begin_at_shard_starts_and_cover_every_sequence_once() -> None:
    found, _, end = read([0, 1, 2], Left())
    assert [one.start for one in found] == [0, 3, 6, 8, 11, 14, 16, 19, 22]
    assert np.concatenate([one.block.tokens[:, 0] for one in found]).tolist() == list(range(24))
    assert [one.cursor for one in found if one.cursor] == [{"sequences": k} for k in (8, 16, 24)]
    assert end is None


def test_a_process_among_others_passes_over_their_shards_in_one_stream() -> None:
    """Else every shard would tokenise the text from its beginning."""
    found, opened, _ = read([1, 3, 5], Left())
    assert [at for at, _ in opened] == [0]
    assert opened[0][1].taken == [*range(8, 16), *range(24, 32), *range(40, 48)]
    assert [one.start for one in found] == [8, 11, 14, 24, 27, 30, 40, 43, 46]


def test_a_later_cursor_is_taken_where_one_was_left() -> None:
    found, opened, _ = read([0, 9], Left(*range(1, 9)))
    assert [at for at, _ in opened] == [0, 9 * S]
    assert [one.start for one in found] == [0, 3, 6, 72, 75, 78]


@pytest.mark.parametrize(("end", "starts"), [(13, [0, 3, 6, 8, 11]), (16, [0, 3, 6, 8, 11, 14]), (8, [0, 3, 6])])
def test_the_end_of_the_text_is_where_no_sequence_follows(end: int, starts: list[int]) -> None:
    found, _, ended = read([0, 1, 2], Left(), end)
    assert [one.start for one in found] == starts
    assert ended == end


def test_a_process_whose_shards_lie_beyond_the_text_says_where_it_ended() -> None:
    assert read([1, 3], Left(), 13)[2] == 13
    found, _, ended = read([3], Left(), 13)
    assert (found, ended) == ([], 13)
