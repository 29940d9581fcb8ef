"""What bad input gets: one line that says what, where and what to do; and nothing is lost or half-written."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

import cache
from cache import atomic
from cache.folder import Folder
from cache.root import read_root
from cache.schema import IDENTITY
from tests.cache.planted import D, N, S, T, make_bits, make_meta, make_rows, tree, write

ROOT = Path(__file__).parents[2]
Spoil = Callable[[Path], Any]


def use(path: Path) -> None:
    """Everything that a training run reads."""
    reader = cache.open(str(path))
    for layer in reader.layers:
        reader.layer(layer).bits(0, reader.n_sequences)
        reader.statistics(layer)
    reader.tokens(), reader.document(), reader.split()


def refusal(call: Callable[[], Any]) -> str:
    """The one line that a CacheError has."""
    with pytest.raises(cache.CacheError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(path: Path, attributes: dict[str, Any]) -> None:
    """Write attributes with the fingerprint and checksum that belong to them, as a forger would."""
    identity = {name: value for name, value in attributes.items() if name in IDENTITY}
    attributes["fingerprint"] = hashlib.sha256(canonical(identity)).hexdigest()
    body = {name: value for name, value in attributes.items() if name != "checksum"}
    attributes["checksum"] = hashlib.sha256(canonical(body)).hexdigest()
    document = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_text(json.dumps({**document, "attributes": attributes}))


def attributes(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]
    return found


def forged(**changes: Any) -> Spoil:
    """Metadata changed and sealed again."""
    return lambda path: seal(path, {**attributes(path), **changes})


def edited(file: str, old: str, new: str) -> Spoil:
    def spoil(path: Path) -> None:
        text = (path / file).read_text()
        assert text.count(old) >= 1
        (path / file).write_text(text.replace(old, new, 1))

    return spoil


def flipped(file: str, at: int) -> Spoil:
    def spoil(path: Path) -> None:
        content = bytearray((path / file).read_bytes())
        content[at] ^= 0x10
        (path / file).write_bytes(content)

    return spoil


def cut(file: str, by: int) -> Spoil:
    return lambda path: os.truncate(path / file, (path / file).stat().st_size - by)


def longer(file: str) -> Spoil:
    def spoil(path: Path) -> None:
        with (path / file).open("ab") as stream:
            stream.write(b"\0")

    return spoil


def relined(change: Callable[[list[bytes]], list[bytes]], *, sealed: bool = True) -> Spoil:
    """The manifest's lines changed; `sealed`: with its checksum in the root mended."""

    def spoil(path: Path) -> None:
        content = b"".join(change((path / "manifest.jsonl").read_bytes().splitlines(keepends=True)))
        (path / "manifest.jsonl").write_bytes(content)
        if sealed:
            seal(path, {**attributes(path), "manifest_crc32c": f"{google_crc32c.value(content):08x}"})

    return spoil


def line(body: dict[str, Any]) -> bytes:
    text = canonical({name: value for name, value in body.items() if name != "crc32c"})[:-1]
    return text + b',"crc32c":"%08x"}\n' % google_crc32c.value(text)


def contradicting(lines: list[bytes]) -> list[bytes]:
    body = json.loads(lines[0])
    body["arrays"]["layer_3"] = "0" * 8 * S
    return [*lines, line(body)]


def reordered(path: Path) -> None:
    """Two sequences change places in the index, whose checksum is right."""
    file = path / "layer_3/c/0/0/0"
    content = file.read_bytes()
    payload = S * T * D * 2
    index = np.frombuffer(content[payload:-4], "<u8").reshape(S, 2)[[1, 0, 2, 3]].tobytes()
    file.write_bytes(content[:payload] + index + int(google_crc32c.value(index)).to_bytes(4, "little"))


def linked_out(file: str) -> Spoil:
    def spoil(path: Path) -> None:
        outside = path.parent / "outside"
        shutil.move(path / file, outside)
        (path / file).symlink_to(outside, target_is_directory=outside.is_dir())

    return spoil


def piped(file: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / file).unlink()
        os.mkfifo(path / file)

    return spoil


def foldered(file: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / file).unlink()
        (path / file).mkdir()

    return spoil


SHARD = "layer_3/c/1/0/0"
REPAIR = r"python -m cache verify"
# What is done to a cache, and what the one line must say: what is wrong, where, and the remedy.
TABLE: dict[str, tuple[Spoil, list[str]]] = {
    "missing folder": (shutil.rmtree, ["is no cache", "small", "check the path, or make one with `make harvest"]),
    "a file instead of a folder": (lambda p: (shutil.rmtree(p), p.write_text("x")), ["small"]),
    "an empty folder": (lambda p: (shutil.rmtree(p), p.mkdir()), ["is no cache", "make harvest"]),
    "another Zarr group": (
        lambda p: (p / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}'),
        ["no format_version", "is no Silo cache", "small"],
    ),
    "a Zarr array": (edited("zarr.json", '"group"', '"array"'), ["describes no Zarr v3 group", "no Silo cache"]),
    "no JSON": (cut("zarr.json", 9), ["zarr.json is no valid JSON", "small", "restore it"]),
    "a key twice": (edited("zarr.json", '"seed"', '"created"'), ["no valid JSON .*a key stands twice"]),
    "a newer format": (
        edited("zarr.json", '"format_version": 1', '"format_version": 2'),
        ["wanted cache format 1, found 2", "upgrade silo-sae"],
    ),
    "an unknown key": (edited("zarr.json", '"seed":', '"zeed":'), [r"missing \['seed'\], unknown \['zeed'\]"]),
    "edited metadata": (edited("zarr.json", '"planted"', '"planked"'), ["do not match their checksum", "restore"]),
    "a forged checksum": (
        lambda p: seal_half(p, seed=43),
        ["the fingerprint is not that of the fields", "restore the file"],
    ),
    "not completed": (forged(complete=False, manifest_crc32c=""), ["was not completed", "run the same harvest again"]),
    "another layer claimed": (forged(layers=[3, 5, 7]), ["is incomplete: 0 of 3 shards", "make harvest LAYER=3,5,7"]),
    "more sequences claimed": (forged(sequences=N + 1), ["is incomplete: 2 of 3 shards, first missing 2"]),
    "a monstrous length": (forged(sequences=2**40), ["sequences must be at most 1,048,576"]),
    "many sequences": (forged(sequences=2**20), ["is incomplete", "make harvest"]),
    "a monstrous shard": (forged(shard_sequences=2**20, d_model=2**20), ["shards of at most 2 GiB"]),
    "another width": (forged(d_model=D // 2), ["layer_3/c/0/0/0 has", "bytes, wanted", REPAIR]),
    "a shard cut short": (cut(SHARD, 1), [f"small/{SHARD} has .* bytes, wanted .*: torn or damaged", REPAIR]),
    "a shard that is empty": (lambda p: os.truncate(p / SHARD, 0), [f"{SHARD} has 0 bytes", REPAIR]),
    "a shard that is gone": (lambda p: (p / SHARD).unlink(), [f"small/{SHARD} is missing", REPAIR]),
    "a byte too many": (longer(SHARD), [f"{SHARD} has .* bytes, wanted", REPAIR]),
    "a reordered index": (reordered, ["layer_3/c/0/0/0: its index is not the dense one", REPAIR]),
    "a flipped index byte": (flipped(SHARD, -10), [f"{SHARD}: its index is not the dense one", REPAIR]),
    "a flipped payload byte": (flipped(SHARD, 2 * T * D * 2 + 5), [f"{SHARD}: sequence 2 of the shard", REPAIR]),
    "a flipped token byte": (flipped("tokens/c/2/0", 3), ["tokens/c/2/0 does not match the manifest", "restore"]),
    "a flipped document byte": (flipped("document/c/0/0", 3), ["document/c/0/0 does not match the manifest"]),
    "a flipped split": (flipped("split/c/0", 1), ["split/c/0 does not match the manifest"]),
    "tokens that are gone": (lambda p: (p / "tokens/c/1/0").unlink(), ["tokens/c/1/0 is missing", "restore"]),
    "tokens cut short": (cut("tokens/c/1/0", 4), ["tokens/c/1/0 does not match the manifest"]),
    "a flipped statistic": (flipped("statistics/layer_5/mean/c/0/0", 7), ["layer_5/mean/c/0/0 does not"]),
    "no manifest": (lambda p: (p / "manifest.jsonl").unlink(), ["manifest.jsonl is not the one", "restore"]),
    "an edited manifest": (edited("manifest.jsonl", '"shard":0', '"shard":1'), ["line 1 does not match its own"]),
    "a manifest less one line": (relined(lambda x: x[1:], sealed=False), ["manifest.jsonl is not the one"]),
    "a forged manifest less one line": (relined(lambda x: x[1:]), ["is incomplete: 2 of 3 shards, first missing 0"]),
    "a line twice": (relined(lambda x: [x[0], *x], sealed=False), ["manifest.jsonl is not the one"]),
    "a contradicting line": (relined(contradicting), ["contradicts an earlier line about 'layer_3' of shard 0"]),
    "a line of junk": (relined(lambda x: [*x, b"junk\n"]), [r"line \d+ does not match its own", "delete the line"]),
    "a line of another version": (relined(lambda x: [*x, line({"shard": 0})]), ["unknown content", "upgrade silo-sae"]),
    "a line about nothing": (
        relined(lambda x: [line({**json.loads(x[0]), "arrays": {"../x": "0" * 8}}), *x]),
        [r"shard 0 of '\.\./x' does not fit zarr.json"],
    ),
    "a link out of the cache": (linked_out(SHARD), [f"{SHARD} leads out of the cache to .*outside", "refused"]),
    "a folder that links out": (linked_out("layer_3"), ["layer_3/c/0/0/0 leads out of the cache", "refused"]),
    "metadata that links out": (linked_out("zarr.json"), ["zarr.json leads out of the cache"]),
    "a manifest that links out": (linked_out("manifest.jsonl"), ["manifest.jsonl leads out of the cache"]),
    "a pipe instead of a shard": (piped(SHARD), [f"{SHARD} is no regular file", "remove it"]),
    "a pipe instead of metadata": (piped("zarr.json"), ["zarr.json is no regular file"]),
    "a pipe instead of a manifest": (piped("manifest.jsonl"), ["manifest.jsonl is no regular file"]),
    "a folder instead of a shard": (foldered(SHARD), [f"{SHARD} is no regular file"]),
}  # fmt: skip


def seal_half(path: Path, **changes: Any) -> None:
    """Fields changed with the checksum mended and the fingerprint left."""
    found = {**attributes(path), **changes}
    body = {name: value for name, value in found.items() if name != "checksum"}
    found["checksum"] = hashlib.sha256(canonical(body)).hexdigest()
    document = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_text(json.dumps({**document, "attributes": found}))


@pytest.mark.parametrize("name", TABLE)
def test_a_damaged_cache_is_refused_with_what_where_and_the_remedy(small: Path, name: str) -> None:
    use(small)
    spoil, wanted = TABLE[name]
    spoil(small)
    message = refusal(lambda: use(small))
    for pattern in wanted:
        assert re.search(pattern, message), f"{pattern!r} is not in: {message}"


def test_what_is_not_damaged_can_still_be_read(small: Path) -> None:
    flipped(SHARD, 2 * T * D * 2 + 5)(small)
    reader = cache.open(str(small))
    assert np.array_equal(reader.layer(5).bits(0, N), make_bits(seed=5))
    assert np.array_equal(reader.layer(3).bits(0, S + 2), make_bits(seed=3)[: S + 2])
    for start, stop in [(0, N), (S + 2, S + 3), (S + 1, S + 4)]:
        assert "sequence 2 of the shard does not match" in refusal(lambda a=start, b=stop: reader.layer(3).bits(a, b))  # type: ignore[misc]


def test_a_torn_last_line_is_a_commit_that_did_not_happen(tmp_path: Path) -> None:
    """Of an unfinished cache the rest is read, and the next writer goes on from there."""
    write(tmp_path / "c", make_meta(), {3: make_bits(seed=3)}, make_rows(), finish=False)
    cut("manifest.jsonl", 5)(tmp_path / "c")
    reader = cache.open(str(tmp_path / "c"), follow=True)
    assert reader.shards == (0, 1)
    assert "shard 2 is not committed yet" in refusal(lambda: reader.layer(3).bits(0, N))
    write(tmp_path / "c", make_meta(), {3: make_bits(seed=3)}, make_rows())
    write(tmp_path / "d", make_meta(), {3: make_bits(seed=3)}, make_rows())
    assert tree(tmp_path / "c") == tree(tmp_path / "d")


def test_rows_of_an_uncommitted_shard_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write(tmp_path / "c", make_meta(), {3: make_bits(seed=3)}, make_rows(), finish=False)
    relined(lambda lines: lines[:2], sealed=False)(tmp_path / "c")
    layer = cache.open(str(tmp_path / "c"), follow=True).layer(3)
    assert len(layer.rows(np.array([0, S * T]))) == 2
    assert "shard 2 of layer_3 is not committed yet" in refusal(lambda: layer.rows(np.array([0, 2 * S * T])))


WRONG = {
    **{name: [5, None, [], {}, True] for name in ("model", "created", "packing", "hook", "codec", "quantisation")},
    **{name: ["5", None, [], {}, 1.5, -7, 10**400] for name in ("context", "d_model", "shard_sequences", "seed")},
    **{name: ["x", None, 5, {"0": 3}, [[]], ["3"], [3.0], [True], [-1], [3, 3]] for name in ("layers",)},
    "model_revision": ["main", "0" * 39, "G" * 40, 5],
    "tokenizer_hash": ["", "0" * 40, None],
    "sources": [None, [], [5], [{}], {"dataset": "x"}, "x", [{"dataset": "x"}]],
    "special_token_ids": [None, 5, "12", ["1"], [-1], [2**31], [1.0]],
    "sequences": [-1, "5", None, 1.5, True, 2**70, 10**400],
    "complete": [1, "yes", None],
    "exhausted": [0, None],
    "audit": [None, [], {"x": "y"}, {"x": None}, {"x": 10**400}],
    "provenance": [None, [], {"x": 5}, {"x": "\x1b[2J"}, "x"],
    "held_out_fraction": [None, "0.5", 1, -0.1, 10**400],
    "manifest_crc32c": [None, 5, "xyz", "0", ["0"]],
    "random_weights": [1, None, "no"],
}
OPEN_ALL = """
import json, sys, traceback
import cache
for path in sys.stdin.read().split():
    try:
        cache.open(path)
        print(json.dumps("it opened"))
    except cache.CacheError as error:
        print(json.dumps("CacheError: " + str(error)))
    except BaseException as error:
        print(json.dumps(repr(error)))
"""


def test_metadata_of_a_wrong_type_is_refused_by_the_field(small: Path, tmp_path: Path) -> None:
    """All at once in a process without the type-checking hook, which would answer in place of our own checks."""
    cases = [(name, value) for name, values in WRONG.items() for value in values]
    paths = []
    for number, (name, value) in enumerate(cases):
        path = tmp_path / f"case{number}"
        path.mkdir()
        for file in ("zarr.json", "manifest.jsonl"):
            shutil.copy(small / file, path / file)
        seal(path, {**attributes(path), name: value})
        paths.append(str(path))
    command = [sys.executable, "-c", OPEN_ALL]
    done = subprocess.run(command, input="\n".join(paths), cwd=ROOT, capture_output=True, text=True, check=True)
    answers = [json.loads(answer) for answer in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    for (name, value), answer in zip(cases, answers, strict=True):
        assert answer.startswith("CacheError: "), f"{name} = {str(value)[:40]}: {answer}"
        assert name in answer or (name == "codec" and "quantisation" in answer), f"{name} = {str(value)[:40]}: {answer}"
        assert "must be" in answer, answer
        assert "\n" not in answer


@pytest.mark.parametrize("layer", [0, 4, 12])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(small: Path, layer: int) -> None:
    message = refusal(lambda: cache.open(str(small)).layer(layer))
    assert f"has no layer {layer}, only 3, 5" in message
    assert f"make harvest LAYER={layer}" in message


def test_positions_outside_of_the_cache_are_an_index_error(small: Path) -> None:
    layer = cache.open(str(small)).layer(3)
    for start, stop in [(-1, 2), (0, N + 1), (5, 4), (N + 1, N + 1)]:
        with pytest.raises(IndexError, match=f"the cache has {N}"):
            layer.bits(start, stop)
    for shard in (-1, 3, 10**9):
        with pytest.raises(IndexError):
            layer.shard_bits(shard)


# The writer


def test_a_foreign_folder_is_refused_and_nothing_in_it_touched(tmp_path: Path) -> None:
    """Not even what looks like debris of ours, or like our lock."""
    folder = tmp_path / "downloads"
    (folder / "sub").mkdir(parents=True)
    for name in ("film.partial", "sub/thesis.partial", "notes.txt", ".lock"):
        (folder / name).write_text("precious")
    before = tree(folder)
    message = refusal(lambda: cache.CacheWriter(folder, make_meta(), layers=(3,), sequences=N))
    assert "downloads is no cache and not empty (it holds 'film.partial')" in message
    assert "use a new folder for CACHE" in message
    assert tree(folder) == before


def test_another_zarr_group_is_refused_and_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "group"
    folder.mkdir()
    (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = tree(folder)
    assert "is no Silo cache" in refusal(lambda: cache.CacheWriter(folder, make_meta(), layers=(3,), sequences=N))
    assert tree(folder) == before


def test_a_file_where_the_cache_should_go_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        (tmp_path / "file").write_text("x")
        message = refusal(lambda p=path: cache.CacheWriter(p, make_meta(), layers=(3,), sequences=N))  # type: ignore[misc]
        assert re.search(r"cannot be made \((File exists|Not a directory)\): choose another CACHE", message)


def test_metadata_without_its_root_is_refused(small: Path) -> None:
    (small / "zarr.json").unlink()
    message = refusal(lambda: cache.CacheWriter(small, make_meta(), layers=(3, 5), sequences=N))
    assert "has a manifest and no zarr.json: restore zarr.json, or remove the folder" in message


@pytest.mark.parametrize("sequences", [0, -1, 2**40])
def test_an_impossible_length_is_refused(tmp_path: Path, sequences: int) -> None:
    message = refusal(lambda: cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=sequences))
    assert "at least 1 sequence" in message or "at most" in message


@pytest.mark.parametrize("layers", [(), (-1,), (10_000,), tuple(range(300))])
def test_impossible_layers_are_refused(tmp_path: Path, layers: tuple[int, ...]) -> None:
    message = refusal(lambda: cache.CacheWriter(tmp_path / "c", make_meta(), layers=layers, sequences=N))
    assert "layers must be 1 to 256 block numbers" in message
    assert [p.name for p in (tmp_path / "c").iterdir() if p.name != ".lock"] == []


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81])
@pytest.mark.parametrize("sequence", [0, 5, N - 1])
def test_a_row_that_is_not_finite_stops_the_harvest_with_its_place(tmp_path: Path, sequence: int, value: int) -> None:
    """And everything before it stays; the next harvest, of sound rows, goes on from there."""
    bits = {3: make_bits(seed=3), 5: make_bits(seed=5)}
    bits[5][sequence, 4, 7] = value
    message = refusal(lambda: write(tmp_path / "c", make_meta(), bits, make_rows()))
    assert f"layer 5 is NaN or infinite at sequence {sequence}, position 4" in message
    assert "look at that document, or run the model in a wider dtype" in message
    assert cache.open(str(tmp_path / "c"), follow=True).shards == tuple(range(sequence // S))
    assert not list((tmp_path / "c").rglob("*.partial"))
    sound = {3: make_bits(seed=3), 5: make_bits(seed=5)}
    write(tmp_path / "c", make_meta(), sound, make_rows())
    write(tmp_path / "d", make_meta(), sound, make_rows())
    assert tree(tmp_path / "c") == tree(tmp_path / "d")


def test_a_disk_that_fills_up_anywhere_leaves_a_cache_that_resumes(tmp_path: Path, monkeypatch: Any) -> None:
    """After any number of bytes, in the constructor, the background thread or `finish`: one answer, no lost shard."""
    bits = {3: make_bits(seed=3)}
    write(tmp_path / "whole", make_meta(), bits, make_rows())
    wanted, real = tree(tmp_path / "whole"), os.pwrite
    total = sum(map(len, wanted.values()))
    for number, room in enumerate([0, 100, 3000, 9000, *range(20_000, total, total // 12), total - 300]):
        path, left = tmp_path / f"c{number}", [room]

        def pwrite(descriptor: int, content: Any, offset: int, left: list[int] = left) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            some = memoryview(content)[: left[0]]
            left[0] -= len(some)
            return real(descriptor, some, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        message = refusal(lambda p=path: write(p, make_meta(), bits, make_rows()))  # type: ignore[misc]
        monkeypatch.setattr(os, "pwrite", real)
        assert "No space left on device while writing; everything committed is safe: free space" in message
        if (path / "zarr.json").exists():
            reader = cache.open(str(path), follow=True)
            for shard in reader.shards:
                assert np.array_equal(reader.layer(3).shard_bits(shard), bits[3][shard * S : (shard + 1) * S])
        write(path, make_meta(), bits, make_rows())
        assert tree(path) == wanted


LIMITED = """
import resource, sys
from pathlib import Path
import cache
from tests.cache.planted import *
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write(Path(sys.argv[1]), make_meta(), {3: make_bits(seed=3)}, make_rows())
    print("written")
except cache.CacheError as error:
    print("CacheError:", error)
"""


@pytest.mark.parametrize("limit", [0, 500, 3000, 30_000])
def test_a_real_limit_of_the_operating_system_is_met_the_same_way(tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE lets a write stop short, as a quota does."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "c"), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.match(r"CacheError: .*File too large while writing; everything committed is safe: free", done.stdout), (
        done
    )
    write(tmp_path / "c", make_meta(), {3: make_bits(seed=3)}, make_rows())
    write(tmp_path / "d", make_meta(), {3: make_bits(seed=3)}, make_rows())
    assert tree(tmp_path / "c") == tree(tmp_path / "d")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_failing_fsync_closes_nothing_twice(tmp_path: Path, monkeypatch: Any) -> None:
    """A descriptor that is closed twice may by then be somebody else's."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if "/layer_5/c/1/0/0." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3, 5), sequences=N)
    before = len(os.listdir("/proc/self/fd"))
    writer.append(0, make_rows(), {3: make_bits(seed=3), 5: make_bits(seed=5)})
    message = refusal(writer.flush)
    assert "Input/output error while writing; everything committed is safe: check the disk" in message
    writer.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    monkeypatch.setattr(os, "fsync", real)
    write(tmp_path / "c", make_meta(), {3: make_bits(seed=3), 5: make_bits(seed=5)}, make_rows())


@pytest.mark.parametrize(
    "linked", ["layer_3", "layer_3/c", "statistics", "statistics/layer_3", "tokens/c", "layer_3/c/3"]
)
def test_a_writer_follows_no_link_out_of_a_cache(tmp_path: Path, linked: str) -> None:
    """A stranger's cache must not choose what is written, or removed, elsewhere."""
    path, outside = tmp_path / "c", tmp_path / "outside"
    write(path, make_meta(), {3: make_bits(seed=3)}, make_rows())
    if (path / linked).exists():
        shutil.copytree(path / linked, outside)
        shutil.rmtree(path / linked)
    else:
        outside.mkdir()
    (path / linked).symlink_to(outside, target_is_directory=True)
    before = tree(outside)
    long = make_bits(4 * N, seed=3)
    message = refusal(lambda: write(path, make_meta(), {3: long}, make_rows(4 * N)))
    assert "leads out of the cache to" in message
    assert "refused" in message
    assert tree(outside) == before


def test_debris_that_is_a_link_is_removed_and_its_target_kept(small: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    debris = small / f"layer_3/c/2/0/0.{os.getpid()}.partial"
    debris.symlink_to(tmp_path / "precious")
    write(small, make_meta(), {x: make_bits(2 * N, seed=x) for x in (3, 5)}, make_rows(2 * N))
    assert not debris.is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def batch(n: int = 2, **changes: Any) -> cache.Rows:
    rows = make_rows(n)
    return rows._replace(**changes)


APPENDS: dict[str, tuple[int, Any, dict[int, Any], type[Exception], str]] = {
    "a gap": (2, batch(), {3: make_bits(2)}, ValueError, "wants sequence 0, got a batch that starts at 2"),
    "before the start": (-1, batch(), {3: make_bits(2)}, ValueError, "wants sequence 0"),
    "another layer": (0, batch(), {4: make_bits(2)}, ValueError, r"wants layers \[3\], got \[4\]"),
    "no layer": (0, batch(), {}, ValueError, r"wants layers \[3\], got \[\]"),
    "a layer too many": (0, batch(), {3: make_bits(2), 4: make_bits(2)}, ValueError, r"got \[3, 4\]"),
    "other lengths": (0, batch(3), {3: make_bits(2)}, ValueError, r"layer 3 must be \[3, 6, 16\], got \[2, 6, 16\]"),
    "another width": (0, batch(), {3: make_bits(2, d=D + 1)}, ValueError, r"got \[2, 6, 17\]"),
    "rows, not sequences": (0, batch(), {3: make_bits(2).reshape(-1, D)}, ValueError, "layer 3 must be"),
    "wide tokens": (0, batch(tokens=np.zeros((2, T), np.int64)), {3: make_bits(2)}, ValueError, "tokens must be int32"),
    "short documents": (0, batch(document=np.zeros((2, T - 1), np.int32)), {3: make_bits(2)}, ValueError, "document"),
    "a flat split": (0, batch(split=np.zeros((2, 1), np.uint8)), {3: make_bits(2)}, ValueError, "split must be uint8"),
    "float32": (0, batch(), {3: np.zeros((2, T, D), np.float32)}, TypeError, "float32: round them explicitly"),
    "int16": (0, batch(), {3: make_bits(2).view(np.int16)}, TypeError, "wanted bfloat16 values"),
}  # fmt: skip


@pytest.mark.parametrize("name", APPENDS)
def test_a_wrong_batch_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    start, rows, residuals, kind, wanted = APPENDS[name]
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N, sync=False) as writer:
        with pytest.raises(kind, match=wanted):
            writer.append(start, rows, residuals)
        assert writer._queue == type(writer._queue)()
    write(tmp_path / "c", make_meta(), {3: make_bits(seed=3)}, make_rows())  # the writer was not spoiled
    assert np.array_equal(cache.open(str(tmp_path / "c")).layer(3).bits(0, N), make_bits(seed=3))


def test_a_missing_domain_is_refused(tmp_path: Path) -> None:
    meta = make_meta(sources=(cache.Source(dataset="a", revision="1", domain="a"),))
    with (
        cache.CacheWriter(tmp_path / "c", meta, layers=(3,), sequences=N) as writer,
        pytest.raises(ValueError, match=r"domain must be uint8 \(2,\), got NoneType"),
    ):
        writer.append(0, batch(), {3: make_bits(2)})


def test_a_tensor_that_is_not_bfloat16_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N) as writer:
        for dtype in (torch.float16, torch.float32, torch.int16):
            with pytest.raises(TypeError, match=r"round them explicitly with \.to\(torch\.bfloat16\)"):
                writer.append(0, batch(), {3: torch.zeros(2, T, D, dtype=dtype)})


def test_writing_to_a_view_changes_neither_the_file_nor_what_others_read(small: Path) -> None:
    before = tree(small)
    reader = cache.open(str(small))
    layer = reader.layer(3)
    for view in (layer.bits(0, 2), layer.shard_bits(0), layer.bits(S, S + 1)):
        with pytest.raises(ValueError, match="read-only"):
            view[:] = 0x7FC0
    assert np.array_equal(layer.bits(0, N), make_bits(seed=3))
    assert np.array_equal(cache.open(str(small)).layer(3).bits(0, N), make_bits(seed=3))
    for array in (reader.tokens(), reader.tokens(0, 2), reader.document(0, 1), reader.split(0, 1)):
        if array.flags.writeable:
            array[:] = 77
    assert np.array_equal(reader.tokens(), make_rows().tokens)
    assert np.array_equal(reader.document(), make_rows().document)
    assert np.array_equal(reader.split(), make_rows().split)
    assert tree(small) == before


def test_writing_to_a_tensor_in_place_changes_nothing_else(small: Path) -> None:
    pytest.importorskip("torch")
    before = tree(small)
    layer = cache.open(str(small)).layer(3)
    layer.sequences(0, 2).mul_(0)
    layer.shard(1).fill_(7)
    assert np.array_equal(layer.bits(0, N), make_bits(seed=3))
    assert tree(small) == before


def test_a_parent_outside_is_refused_by_the_one_place_that_makes_folders(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for file in ("../x/zarr.json", "a/../../x/zarr.json"):
        with pytest.raises(cache.CacheError, match="leads out of the cache"):
            atomic.make_parents(tmp_path / "c", tmp_path / "c" / file)


def test_names_with_dots_open_nothing_outside(small: Path) -> None:
    (small.parent / "secret").write_text("{}")
    folder = Folder(small)
    for file in ("../secret", "layer_3/../../secret", f"{small.parent}/secret", "..", ".", "/etc/passwd"):
        with pytest.raises(cache.CacheError, match=r"leads out of the cache|is no regular file"):
            folder.read(file, 100)
    assert read_root(folder)[1].complete
