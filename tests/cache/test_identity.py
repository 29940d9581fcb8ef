"""What a second request makes of a cache: nothing, more of it, another layer, or a refusal that says why."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache
from cache import describe
from cache.folder import Folder
from cache.verify import Verification, drop_damaged
from tests.cache.planted import N, S, T, make_bits, make_meta, make_rows, tree, write

LONG = 3 * N  # eight whole shards and a partial one


def bits(n: int, *layers: int) -> dict[int, np.ndarray]:
    """Planted vectors; a shorter cache holds the beginning of a longer one."""
    return {layer: make_bits(LONG, seed=layer)[:n] for layer in layers}


def rows(n: int, **options: Any) -> cache.Rows:
    return cache.Rows(*(None if array is None else array[:n] for array in make_rows(LONG, **options)))


def at_once(path: Path, n: int, *layers: int) -> dict[str, bytes]:
    write(path, make_meta(), bits(n, *layers), rows(n))
    return tree(path)


def stamps(path: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of every file and folder; the lock alone is touched by every writer."""
    found = {p: p.stat() for p in [path, *path.rglob("*")] if p.name != ".lock"}
    return {str(p): (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in found.items()}


def test_the_same_request_again_changes_nothing(small: Path) -> None:
    before = stamps(small)
    meta = make_meta(created="2030-12-31T00:00:00Z", provenance={"commit": "another"})
    with cache.CacheWriter(small, meta, layers=(3, 5), sequences=N) as writer:
        assert list(writer.jobs()) == []
        writer.finish()
        assert writer.state.complete
    assert stamps(small) == before
    assert (small / ".lock").read_bytes() == b""


@pytest.mark.parametrize(("layers", "n"), [((3,), N), ((5,), 1), ((3, 5), N - 1), ((5, 3), S)])
def test_a_smaller_request_is_met_by_what_is_there(small: Path, layers: tuple[int, ...], n: int) -> None:
    before = stamps(small)
    with cache.CacheWriter(small, make_meta(), layers=layers, sequences=n) as writer:
        assert list(writer.jobs()) == []
        writer.finish()
    assert stamps(small) == before


@pytest.mark.parametrize("length", [N + 1, N + 2, 2 * N, LONG])
def test_a_longer_request_extends_to_the_bytes_of_that_length_at_once(tmp_path: Path, length: int) -> None:
    """The last shard was partial (3 of 4): it grows, fills up exactly, or is followed by others."""
    wanted = at_once(tmp_path / "at_once", length, 3)
    write(tmp_path / "grown", make_meta(), bits(N, 3), rows(N))
    write(tmp_path / "grown", make_meta(created="later"), bits(length, 3), rows(length))
    assert tree(tmp_path / "grown") == wanted


def test_extending_leaves_whole_shards_untouched(tmp_path: Path) -> None:
    at_once(tmp_path / "c", N, 3)
    whole = [tmp_path / "c" / f"layer_3/c/{shard}/0/0" for shard in range(N // S)]
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in whole]
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=LONG) as writer:
        assert [job.shard for job in writer.jobs()] == list(range(N // S, -(-LONG // S)))
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in whole] == before


def test_another_layer_is_aligned_and_gives_the_bytes_of_one_pass_with_both(tmp_path: Path) -> None:
    wanted = at_once(tmp_path / "at_once", N, 3, 5)
    at_once(tmp_path / "c", N, 5)
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N) as writer:
        jobs = list(writer.jobs())
    assert [(job.start, job.layers, job.rows) for job in jobs] == [(0, (3,), False), (4, (3,), False), (8, (3,), False)]
    write(tmp_path / "c", make_meta(), bits(N, 3), rows(N))
    assert tree(tmp_path / "c") == wanted
    reader = cache.open(str(tmp_path / "c"))
    assert reader.layers == (3, 5)
    for layer in (3, 5):
        assert np.array_equal(reader.layer(layer).bits(0, N), bits(N, layer)[layer])


def test_more_length_and_another_layer_at_once(tmp_path: Path) -> None:
    wanted = at_once(tmp_path / "at_once", LONG, 3, 5)
    at_once(tmp_path / "c", N, 3)
    write(tmp_path / "c", make_meta(), bits(LONG, 3, 5), rows(LONG))
    assert tree(tmp_path / "c") == wanted


def test_layers_that_are_there_grow_with_a_request_that_names_only_another(tmp_path: Path) -> None:
    at_once(tmp_path / "c", N, 3)
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(5,), sequences=LONG) as writer:
        assert writer.state.layers == (3, 5)
        assert [job.layers for job in writer.jobs()] == [(5,)] * (N // S) + [(3, 5)] * (-(-LONG // S) - N // S)


def test_an_interrupted_request_may_be_taken_up_with_another_length(tmp_path: Path) -> None:
    """Longer, or down to what is committed: the plan of an unfinished cache is no promise."""
    for asked, held in [(N, N), (2 * N, 2 * N), (1, 2 * S), (2 * S, 2 * S)]:
        path = tmp_path / f"c{asked}"
        with cache.CacheWriter(path, make_meta(), layers=(3,), sequences=LONG, sync=False) as writer:
            writer.append(0, rows(2 * S), bits(2 * S, 3), cursor={"at": 2 * S})
        shutil.rmtree(tmp_path / "at_once", ignore_errors=True)
        write(path, make_meta(), bits(held, 3), rows(held)) if asked > 1 else _complete(path, asked)
        assert cache.open(str(path)).n_sequences == held
        assert np.array_equal(cache.open(str(path)).layer(3).bits(0, held), bits(held, 3)[3])


def _complete(path: Path, sequences: int) -> None:
    with cache.CacheWriter(path, make_meta(), layers=(3,), sequences=sequences, sync=False) as writer:
        assert list(writer.jobs()) == []
        writer.finish()


OTHERS: dict[str, Any] = {
    "model": "another",
    "model_revision": "f" * 40,
    "model_dtype": "float32",
    "random_weights": True,
    "tokenizer_hash": "cd" * 32,
    "sources": (cache.Source(dataset="planted", revision="2"),),
    "context": T + 1,
    "packing": "truncate",
    "bos_token_id": 1,
    "special_token_ids": (0,),
    "d_model": 32,
    "attn_implementation": "sdpa",
    "seed": 43,
    "held_out_fraction": 0.1,
    "shard_sequences": S + 1,
    "codec": "zstd",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_request_that_contradicts_is_refused_with_the_field_and_both_values(small: Path, name: str) -> None:
    before = stamps(small)
    with pytest.raises(cache.CacheError) as caught:
        cache.CacheWriter(small, make_meta(**{name: OTHERS[name]}), layers=(3, 5), sequences=N)
    message = str(caught.value)
    assert f"{name}: have {getattr(make_meta(), name)!r}, asked for {OTHERS[name]!r}" in message
    assert [other for other in OTHERS if f" {other}: have" in message or f"({other}: have" in message] == [name]
    assert "use another CACHE" in message
    assert "\n" not in message
    assert stamps(small) == before


def test_every_differing_field_is_named_at_once(small: Path) -> None:
    with pytest.raises(cache.CacheError) as caught:
        cache.CacheWriter(small, make_meta(**OTHERS), layers=(3, 5), sequences=N)
    missing = [name for name in OTHERS if f"{name}: have" not in str(caught.value)]
    assert missing == []


def test_the_fingerprint_is_that_of_the_numbers_and_not_of_their_layout() -> None:
    layout = {"shard_sequences", "codec"}
    for name, value in OTHERS.items():
        same = replace(make_meta(), **{name: value}).fingerprint == make_meta().fingerprint
        assert same == (name in layout), name
    assert make_meta(created="another day", provenance={}).fingerprint == make_meta().fingerprint


def test_a_source_that_ends_early_gives_the_bytes_of_a_cache_of_that_length_but_for_its_mark(tmp_path: Path) -> None:
    for end in (N, 2 * S, 1):  # in the middle of a shard, at a border, within the first
        path = tmp_path / f"c{end}"
        exhaust(path, end, sequences=LONG)
        wanted, found = at_once(tmp_path / f"at_once{end}", end, 3), tree(path)
        assert found.keys() == wanted.keys()
        assert [name for name in found if found[name] != wanted[name]] == ["zarr.json"]
        assert found["zarr.json"].count(b'"exhausted": true') == 1
        assert cache.open(str(path)).n_sequences == end


def test_an_exhausted_cache_meets_every_longer_request(tmp_path: Path) -> None:
    exhaust(tmp_path / "c", N, sequences=LONG)
    before = stamps(tmp_path / "c")
    for asked in (1, N, LONG, 1_000_000):
        with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=asked) as writer:
            assert list(writer.jobs()) == []
            writer.finish()
    assert stamps(tmp_path / "c") == before


def test_a_layer_can_be_added_to_an_exhausted_cache(tmp_path: Path) -> None:
    exhaust(tmp_path / "c", N, sequences=LONG)
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(5,), sequences=LONG, sync=False) as writer:
        assert writer.state.sequences == N
        writer.append(0, rows(N), bits(N, 5))
        writer.finish(exhausted_at=N)
    reader = cache.open(str(tmp_path / "c"))
    assert reader.state.exhausted
    assert np.array_equal(reader.layer(5).bits(0, N), bits(N, 5)[5])


def test_a_source_without_one_sequence_completes_nothing(tmp_path: Path) -> None:
    writer = cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N)
    with writer, pytest.raises(cache.CacheError, match="held not even one sequence of 6 tokens"):
        writer.finish(exhausted_at=0)
    with pytest.raises(cache.CacheError, match="is incomplete: 0 of 3 shards"):
        cache.open(str(tmp_path / "c"))


def test_an_end_that_is_not_where_the_writer_stands_is_refused(tmp_path: Path) -> None:
    for end in (S + 2, S - 1, 3 * S):
        path = tmp_path / f"c{end}"
        writer = cache.CacheWriter(path, make_meta(), layers=(3,), sequences=LONG, sync=False)
        with writer:
            writer.append(0, rows(S + 1), bits(S + 1, 3))
            with pytest.raises(cache.CacheError):
                writer.finish(exhausted_at=end)
        with pytest.raises(cache.CacheError, match="is incomplete"):
            cache.open(str(path))


def exhaust(path: Path, end: int, *, sequences: int) -> None:
    with cache.CacheWriter(path, make_meta(), layers=(3,), sequences=sequences, sync=False) as writer:
        for start in range(0, end, S):
            stop = min(start + S, end)
            some = cache.Rows(*(None if a is None else a[start:stop] for a in rows(end)))
            cursor = {"at": stop} if stop % S == 0 or stop == end else None
            writer.append(start, some, {3: bits(end, 3)[3][start:stop]}, cursor=cursor)
        writer.finish(exhausted_at=end)


@pytest.mark.parametrize("name", ["tokens", "document", "split", "domain"])
def test_a_layer_for_other_tokens_is_refused(tmp_path: Path, name: str) -> None:
    """One token, document, split or domain that differs in the last shard."""
    meta = make_meta(sources=tuple(cache.Source(dataset=d, revision="1", domain=d) for d in ("a", "b")))
    write(tmp_path / "c", meta, bits(N, 3), rows(N, domain=True))
    other = cache.Rows(*(None if array is None else array.copy() for array in rows(N, domain=True)))
    values = getattr(other, name)
    values[N - 1] = values[N - 1] + 1 if values.ndim > 1 else 1 - values[N - 1]
    writer = cache.CacheWriter(tmp_path / "c", meta, layers=(5,), sequences=N, sync=False)
    writer.append(0, other, bits(N, 5))
    with pytest.raises(cache.CacheError, match=f"{name} of shard 2 differs .* can only be added for the same tokens"):
        writer.finish()
    writer.close()
    write(tmp_path / "c", meta, bits(N, 5), rows(N, domain=True))  # and with the right ones all is well
    assert np.array_equal(cache.open(str(tmp_path / "c")).domain(), rows(N, domain=True).domain)


def begin(path: Path, n: int, *layers: int, shards: int) -> None:
    """Begin to write, and stop after so many of the shards that are owed."""
    with cache.CacheWriter(path, make_meta(), layers=layers, sequences=n, sync=False) as writer:
        for job in list(writer.jobs())[:shards]:
            some = cache.Rows(*(None if a is None else a[job.start : job.stop] for a in rows(n)))
            wanted = {layer: values[job.start : job.stop] for layer, values in bits(n, *job.layers).items()}
            writer.append(job.start, some, wanted, cursor={"at": job.stop})


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_a_layer_that_was_begun_can_be_given_up_and_taken_up_again(tmp_path: Path, shards: int) -> None:
    wanted, both = at_once(tmp_path / "c", N, 3), at_once(tmp_path / "both", N, 3, 5)
    begin(tmp_path / "c", N, 5, shards=shards)
    with pytest.raises(cache.CacheError, match="is incomplete"):
        cache.open(str(tmp_path / "c"))
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N) as writer:
        assert list(writer.jobs()) == []
        writer.finish()
    reader = cache.open(str(tmp_path / "c"))
    assert (reader.layers, reader.set_aside) == ((3,), {5: shards} if shards else {})
    assert Verification(Folder(tmp_path / "c")).run() == []
    assert (tmp_path / "c" / "layer_5").exists() == bool(shards)
    told = f"set aside    layer 5, begun and not finished: {shards} of 3 shards; LAYER=5 goes on"
    assert (told in describe.page(reader)) == bool(shards)
    kept = tree(tmp_path / "c")
    assert {
        name: kept[name] for name in wanted if name not in ("zarr.json", "manifest.jsonl")
    }.items() <= wanted.items()
    assert sum("layer_5" in name for name in kept) == 2 * shards  # no zarr.json: no array for other readers
    assert kept == wanted or shards
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(5,), sequences=N, sync=False) as writer:
        assert [job.shard for job in writer.jobs()] == list(range(shards, 3))
    begin(tmp_path / "c", N, 5, shards=3)
    _complete(tmp_path / "c", N)
    assert tree(tmp_path / "c") == both


def test_a_layer_that_was_set_aside_stays_aside_while_the_cache_grows(tmp_path: Path) -> None:
    both = at_once(tmp_path / "both", LONG, 3, 5)
    at_once(tmp_path / "c", N, 3)
    begin(tmp_path / "c", N, 5, shards=1)
    at_once(tmp_path / "c", LONG, 3)  # gives layer 5 up and grows
    reader = cache.open(str(tmp_path / "c"))
    assert (reader.layers, reader.set_aside) == ((3,), {5: 1})
    write(tmp_path / "c", make_meta(), bits(LONG, 5), rows(LONG))
    assert tree(tmp_path / "c") == both


def test_a_damaged_shard_that_was_set_aside_is_found(tmp_path: Path) -> None:
    at_once(tmp_path / "c", N, 3)
    begin(tmp_path / "c", N, 5, shards=2)
    _complete(tmp_path / "c", N)
    file = tmp_path / "c" / "layer_5/c/1/0/0"
    file.write_bytes(file.read_bytes()[:100] + b"?" + file.read_bytes()[101:])
    (finding,) = Verification(Folder(tmp_path / "c")).run()
    assert (finding.array, finding.shard) == ("layer_5", 1)
    drop_damaged(tmp_path / "c", [finding])
    _complete(tmp_path / "c", N)
    assert cache.open(str(tmp_path / "c")).set_aside == {5: 1}
    assert not file.exists()
    assert Verification(Folder(tmp_path / "c")).run() == []


def test_layers_of_one_unfinished_request_are_finished_together(tmp_path: Path) -> None:
    """Neither is behind the other, so asking for one gives up nothing."""
    begin(tmp_path / "c", LONG, 3, 5, shards=2)
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=LONG) as writer:
        assert writer.state.layers == (3, 5)


def test_looking_at_what_is_owed_changes_nothing(small: Path, tmp_path: Path) -> None:
    before = stamps(small)
    for layers, n in [((3,), N), ((7,), N), ((3, 5), LONG)]:
        seen = cache.look(small, make_meta(), layers, n)
        assert stamps(small) == before
        shutil.copytree(small, tmp_path / "c", dirs_exist_ok=True)
        with cache.CacheWriter(tmp_path / "c", make_meta(), layers=layers, sequences=n, sync=False) as writer:
            assert (seen.owed, seen.state) == (writer.owed, writer.state)
        shutil.rmtree(tmp_path / "c")
    assert [job.shard for job in cache.look(tmp_path / "none", make_meta(), (3,), N).owed] == [0, 1, 2]
    assert not (tmp_path / "none").exists()
    with pytest.raises(cache.CacheError, match="seed: have 42, asked for 43"):
        cache.look(small, make_meta(seed=43), (3,), N)
    (tmp_path / "file").touch()
    with pytest.raises(cache.CacheError, match="is no folder"):
        cache.look(tmp_path / "file", make_meta(), (3,), N)


def test_the_held_out_split_stays_what_it_was(tmp_path: Path) -> None:
    """Extending and adding a layer keep every bit of it; another fraction is another cache."""
    at_once(tmp_path / "c", N, 3)
    split = cache.open(str(tmp_path / "c")).split()
    write(tmp_path / "c", make_meta(), bits(LONG, 3, 5), rows(LONG))
    reader = cache.open(str(tmp_path / "c"))
    assert 0 < split.sum() < N
    assert np.array_equal(reader.split()[:N], split)
    assert np.array_equal(reader.split(), rows(LONG).split)


def test_a_batch_may_span_shards_but_nothing_that_lies_between_two_jobs(tmp_path: Path) -> None:
    """Rank 0 of 2 owes shards 0, 2, …: a batch that ran on into shard 1 would have landed in shard 2."""
    options: dict[str, Any] = {"layers": (3,), "sequences": 4 * S, "sync": False}
    with cache.CacheWriter(tmp_path / "r", make_meta(), world_size=2, session="s", **options) as writer:
        with pytest.raises(ValueError, match="starts at 0 must end at 4"):
            writer.append(0, rows(S + 1), bits(S + 1, 3))
        writer.append(0, rows(S), bits(S, 3))
    with cache.CacheWriter(tmp_path / "c", make_meta(), **options) as writer:
        with pytest.raises(ValueError, match="starts at 0 must end at 16"):
            writer.append(0, rows(4 * S + 1), bits(4 * S + 1, 3))
        writer.append(0, rows(4 * S), bits(4 * S, 3))
        writer.finish()
    assert np.array_equal(cache.open(str(tmp_path / "c")).layer(3).bits(0, 4 * S), bits(4 * S, 3)[3])


def test_a_cursor_is_kept_only_where_the_text_stood_at_the_end_of_a_shard(tmp_path: Path) -> None:
    """A batch that spans a border has no cursor for it: none is right, the older one would repeat text."""
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=3 * S, sync=False) as writer:
        for start, stop in [(0, 3), (3, 6), (6, 8), (8, 12)]:
            some = cache.Rows(*(None if a is None else a[start:stop] for a in rows(3 * S)))
            writer.append(start, some, {3: bits(3 * S, 3)[3][start:stop]}, cursor={"at": stop})
        writer.finish()
    commits = cache.open(str(tmp_path / "c")).manifest.commits
    assert [dict(commits[shard].cursor) for shard in range(3)] == [{}, {"at": 8}, {"at": 12}]
