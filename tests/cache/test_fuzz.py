"""Whatever stands in the metadata, a CacheError or the planted bits come out; and laws that hold for any input.

    python -m tests.cache.test_fuzz FOLDER SEED CASES

is one process of the fuzz (without pytest's type-checking hook, which would answer in place of our own checks).
"""

import codecs
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache
from cache import bf16, manifest
from cache.codecs import CODECS
from cache.folder import Folder
from cache.manifest import Commit, Manifest, Stored
from cache.reader import CacheReader
from cache.root import read_root
from cache.schema import IDENTITY, CacheState, from_attributes, to_attributes
from cache.statistics import ROW_SETS, ShardStatistics, merge, moments, quantiles, row_masks
from tests.cache.planted import BOS, D, N, S, T, make_bits, make_meta, make_rows, write

ROOT = Path(__file__).parents[2]
LAYERS = (3, 5)
MUTABLE = ("zarr.json", "manifest.jsonl")
RAW = {"@inf@": "1e999", "@nan@": "NaN", "@digits@": "9" * 5000, "@minus@": "-0", "@float@": "1E400"}
NASTY: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 5, 7, 2**20, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, 10**400),
    *(1e308, -1e308, 1.5, 4.0, 5e-324, *RAW, "", "x", "raw", "zstd", "int8", "none", "../../../etc/passwd"),
    *("layer_3", "layer_5", "tokens", "statistics/layer_3/shards", "\x1b[2J", "\n", "\ud800", "f" * 64, "é" * 5000),
    *([], {}, [[]], [{}], {"": ""}, [3], [5, 3], [3, 5], list(range(300)), {"a": {"b": [None]}}, ["x"] * 7_000),
]  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


class Mutator:
    """Turns the metadata of a cache into something else."""

    def __init__(self, rng: random.Random, files: dict[str, bytes]) -> None:
        """Of these files."""
        self.rng, self.files = rng, files

    def anything(self) -> dict[str, bytes]:
        """One mutated state of the metadata files."""
        return self.rng.choice([self.raw, self.attributes, self.attributes, self.lines, self.lines])()

    def raw(self) -> dict[str, bytes]:
        """Bytes of one file changed; no checksum is mended."""
        name = self.rng.choice(MUTABLE)
        content = bytearray(self.files[name])
        for _ in range(self.rng.choice([1, 1, 1, 2, 5])):
            content = self.rng.choice(
                [self._flip, self._cut, self._splice, self._insert, self._drop, self._double_key, self._number]
            )(content)
        return {**self.files, name: bytes(content)}

    def attributes(self) -> dict[str, bytes]:
        """The root's document changed in places, mostly with its checksums mended."""
        document = json.loads(self.files["zarr.json"])
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            self._change(document if self.rng.random() < 0.1 else document.get("attributes", document))
        return {**self.files, "zarr.json": self._sealed(document)}

    def lines(self) -> dict[str, bytes]:
        """The manifest's lines changed, with every checksum up to the root's mended."""
        bodies = [json.loads(line) for line in self.files["manifest.jsonl"].splitlines()]
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            shards = [number for number, body in enumerate(bodies) if "shard" in body] or [0]
            at = self.rng.choice(shards) if self.rng.random() < 0.7 else self.rng.randrange(len(bodies))
            what = self.rng.random()
            if what < 0.6:
                self._change(bodies[at])
            elif what < 0.75:
                bodies.append(json.loads(self.rng.choice(self.files["manifest.jsonl"].splitlines())))
                self._change(bodies[-1])
            elif what < 0.85 and len(bodies) > 1:
                del bodies[at]
            else:
                self.rng.shuffle(bodies)
        content = b"".join(_line(body) for body in bodies)
        document = json.loads(self.files["zarr.json"])
        document["attributes"]["manifest_crc32c"] = f"{google_crc32c.value(content):08x}"
        if self.rng.random() < 0.3:
            document["attributes"] |= {"complete": False, "manifest_crc32c": ""}
        return {**self.files, "manifest.jsonl": content, "zarr.json": self._sealed(document)}

    def _change(self, value: Any) -> None:
        """Replace, remove or add something somewhere inside."""
        if not isinstance(value, dict | list):
            return
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not keys:
                return
            key = self.rng.choice(keys)
            if isinstance(value[key], dict | list) and value[key] and self.rng.random() < 0.6:
                value = value[key]
                continue
            break
        what = self.rng.random()
        if what < 0.7:
            value[key] = self._value(value[key])
        elif what < 0.85:
            del value[key]
        elif isinstance(value, dict):
            value[self.rng.choice(["", "x", "layers", "shard", "array", "layer_9", *map(str, keys)])] = self._value(1)
        else:
            value.insert(self.rng.randrange(len(value) + 1), self._value(1))

    def _value(self, old: Any) -> Any:
        rng = self.rng
        if isinstance(old, bool) or rng.random() < 0.5:
            chosen = copy.deepcopy(rng.choice(NASTY))
            return nested(rng.choice([2, 20, 200, 400, 900, 980, 990, 1200])) if rng.random() < 0.04 else chosen
        if isinstance(old, int) and abs(old) < 10**300:
            return rng.choice([old + 1, old - 1, -old, old * 2, old // 2, float(old), str(old), old * 2**32])
        if isinstance(old, str) and old:
            at = rng.randrange(len(old))
            return rng.choice([old[:at], old + old, old[:at] + "0" + old[at + 1 :], old[::-1], old.upper(), old + "\n"])
        return rng.choice([[old], {"a": old}, None])

    def _sealed(self, document: dict[str, Any]) -> bytes:
        """Its bytes, mostly with the fingerprint and checksum that belong to its contents."""
        attributes = document.get("attributes")
        if isinstance(attributes, dict) and self.rng.random() < 0.9:
            identity = {name: attributes[name] for name in IDENTITY if name in attributes}
            if self.rng.random() < 0.95:
                attributes["fingerprint"] = _sha256(identity)
            attributes["checksum"] = _sha256({name: x for name, x in attributes.items() if name != "checksum"})
        text = _dumps(document)
        for mark, form in RAW.items():
            text = text.replace(f'"{mark}"', form)
        return text.encode("ascii")

    def _flip(self, content: bytearray) -> bytearray:
        for _ in range(self.rng.choice([1, 1, 3])):
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        return content

    def _cut(self, content: bytearray) -> bytearray:
        return content[: self.rng.randrange(len(content))] or bytearray(b" ")

    def _drop(self, content: bytearray) -> bytearray:
        at = self.rng.randrange(len(content))
        return (content[:at] + content[at + self.rng.choice([1, 4, 40, 400]) :]) or bytearray(b" ")

    def _splice(self, content: bytearray) -> bytearray:
        a, b, n = self.rng.randrange(len(content)), self.rng.randrange(len(content)), self.rng.choice([1, 8, 80, 800])
        return content[:a] + content[b : b + n] + content[a + self.rng.choice([0, n]) :]

    def _insert(self, content: bytearray) -> bytearray:
        at = self.rng.randrange(len(content))
        junk = [
            b"\x00",
            b"\n",
            b"\r",
            b'"',
            b"[" * 5000,
            b'{"a":' * 5000,
            b"9" * 5000,
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"\\u",
        ]
        return content[:at] + self.rng.choice(junk) + content[at:]

    def _double_key(self, content: bytearray) -> bytearray:
        colon = content.find(b":", self.rng.randrange(len(content)))
        begin = content.rfind(b'"', 0, content.rfind(b'"', 0, max(colon, 0)))
        return content[: max(begin, 0)] + content[max(begin, 0) : colon] + b": 1, " + content[max(begin, 0) :]

    def _number(self, content: bytearray) -> bytearray:
        digits = [at for at, byte in enumerate(content) if 48 <= byte <= 57]
        at = self.rng.choice(digits) if digits else 0
        form = self.rng.choice(
            [b"1e999", b"-1", b"1.0", b"9" * 400, b"9" * 5000, b"0x10", b"Infinity", b"null", b"1e-400"]
        )
        return content[:at] + form + content[at + 1 :]


def _dumps(value: Any, **options: Any) -> str:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return json.dumps(value, **options)
    finally:
        sys.setrecursionlimit(limit)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def _line(body: Any) -> bytes:
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name != "crc32c"}
    text = _dumps(body, sort_keys=True, separators=(",", ":"))
    for mark, form in RAW.items():
        text = text.replace(f'"{mark}"', form)
    content = text[:-1].encode("ascii")
    return content + b',"crc32c":"%08x"}\n' % google_crc32c.value(content)


class InMemory(Folder):
    """A cache on disk whose metadata files are these."""

    def __init__(self, path: Path, files: dict[str, bytes]) -> None:
        super().__init__(path)
        self.files = files

    def read(self, file: str, most: int) -> bytes:
        if file not in self.files:
            return super().read(file, most)
        if len(self.files[file]) > most:
            raise cache.CacheError(f"{file} has more than {most} bytes")
        return self.files[file]

    def size(self, file: str) -> int | None:
        return len(self.files[file]) if file in self.files else super().size(file)


class HangError(BaseException):
    """A case that takes longer than any may."""


class Fuzz:
    """Runs cases against one small cache and counts what comes out of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Plant caches of several kinds."""
        self.rng = random.Random(seed)
        self.folder, self.outcomes = folder.resolve(), Counter[str]()
        self.bases = []
        for codec in ("raw", "zstd"):
            path = self.folder / codec
            domains = tuple(cache.Source(dataset=name, revision="1", domain=name) for name in "ab")
            meta = make_meta(codec=codec, sources=domains)
            write(path, meta, {layer: make_bits(seed=layer) for layer in LAYERS}, make_rows(domain=True))
            self.bases.append((path, {name: (path / name).read_bytes() for name in MUTABLE}))
        self.allowed: str | None = None
        self.trespasses: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event.startswith("pickle") or event in ("os.system", "subprocess.Popen", "socket.connect", "exec"):
            self.trespasses.append(event)
        paths = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.listdir")
        if event in paths and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            if os.path.isabs(path) and not os.path.realpath(path).startswith(self.allowed):
                self.trespasses.append(f"{event} {path}")

    def case(self, what: Callable[[], Any], root: Path) -> None:
        """One input: a CacheError, or a result; nothing else, and soon."""
        self.allowed = str(root)
        signal.setitimer(signal.ITIMER_REAL, 20)
        try:
            what()
        except cache.CacheError as error:
            message = str(error)
            assert "\n" not in message, f"more than one line: {message!r}"
            assert 10 < len(message) < 6000, f"no message for a person: {message[:200]!r}"
            self.outcomes["refused"] += 1
        else:
            self.outcomes["read"] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.allowed = None
        assert not self.trespasses, self.trespasses

    def run(self, cases: int) -> None:
        """In-memory parsers mostly; the whole reader often; files on disk and the writer now and then."""
        kinds = [self.parsers] * 66 + [self.reader] * 30 + [self.on_disk] * 3 + [self.writer]
        for number in range(cases):
            path, files = self.rng.choice(self.bases)
            mutated = Mutator(self.rng, files).anything()
            kind = self.rng.choice(kinds)
            try:
                kind(path, mutated)
            except BaseException:
                sys.stderr.write(f"case {number} ({kind.__name__}):\n")
                for name in MUTABLE:
                    if mutated[name] != files[name]:
                        sys.stderr.write(f"{name}: {mutated[name][:3000]!r}\n")
                raise
            self.outcomes[kind.__name__] += 1

    def parsers(self, path: Path, files: dict[str, bytes]) -> None:
        folder = InMemory(path, files)
        self.case(lambda: read_root(folder), path)
        self.case(lambda: manifest.parse(files["manifest.jsonl"], "manifest.jsonl"), path)

    def reader(self, path: Path, files: dict[str, bytes]) -> None:
        follow = self.rng.random() < 0.5
        self.case(lambda: self.read_all(CacheReader(InMemory(path, files), follow=follow)), path)

    def on_disk(self, path: Path, files: dict[str, bytes]) -> None:
        """Through `cache.open`, with shard indices that may be wrong too."""
        copied = self.folder / "copy"
        shutil.copytree(path, copied)
        for name, content in files.items():
            (copied / name).write_bytes(content)
        if self.rng.random() < 0.7:
            self._spoil_shard(copied / f"layer_{self.rng.choice(LAYERS)}/c/{self.rng.randrange(3)}/0/0")
        try:
            self.case(lambda: self.read_all(cache.open(str(copied), follow=self.rng.random() < 0.5)), copied)
        finally:
            shutil.rmtree(copied)

    def _spoil_shard(self, file: Path) -> None:
        content = bytearray(file.read_bytes())
        at = len(content) - 16 * S - 4
        index = np.frombuffer(bytes(content[at:-4]), "<u8").reshape(S, 2).copy()
        what = self.rng.randrange(6)
        if what == 0:
            index = index[self.rng.sample(range(S), S)]
        elif what == 1:
            index[self.rng.randrange(S), self.rng.randrange(2)] = self.rng.choice([0, 1, 2**32, 2**63, 2**64 - 1])
        elif what == 2:
            content[self.rng.randrange(at)] ^= 1 << self.rng.randrange(8)
        elif what == 3:
            content += bytes(self.rng.randrange(1, 4096))
        elif what == 4:
            index[:] = index[0]
        raw = index.tobytes()
        content[at : at + len(raw) + 4] = raw + int(google_crc32c.value(raw)).to_bytes(4, "little")
        file.write_bytes(content[: self.rng.randrange(len(content))] if what == 5 else content)

    def writer(self, path: Path, files: dict[str, bytes]) -> None:
        """Whether a request meets such a folder with an answer; the shards it would write are not written."""
        copied = self.folder / "copy"
        shutil.copytree(path, copied)
        for name, content in files.items():
            (copied / name).write_bytes(content)
        n, layers = self.rng.choice([1, N, N + 1, 3 * N]), self.rng.choice([(3,), LAYERS, (5, 7)])
        meta = read_root(Folder(path))[0]
        try:
            self.case(lambda: cache.CacheWriter(copied, meta, layers=layers, sequences=n, sync=False).close(), copied)
        finally:
            shutil.rmtree(copied)

    def read_all(self, reader: CacheReader) -> None:
        """Everything a reader gives, held against what was planted."""
        planted_rows = make_rows(domain=True)
        for layer in reader.layers:
            planted = make_bits(seed=layer) if layer in LAYERS else None
            for shard in reader.shards:
                numbers = reader.shard_range(shard)
                bits = reader.layer(layer).shard_bits(shard)
                assert planted is not None, "a layer that is not there was read"
                # The shape may be another where the metadata was changed and sealed again; the bytes may not.
                assert bits.tobytes() == planted[numbers.start : numbers.stop].tobytes(), f"shard {shard} is wrong"
                tokens = reader.tokens(numbers.start, numbers.stop)
                if tokens.shape[1:] == (T,):
                    assert np.array_equal(tokens, planted_rows.tokens[numbers.start : numbers.stop])
            reader.statistics(layer)
        for name in ("tokens", "document", "split", "domain"):
            getattr(reader, name)()


def main(folder: str, seed: str, cases: str) -> None:
    def hang(number: int, frame: Any) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, hang)
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"):
        codecs.lookup(encoding)  # json guesses them, and the first use of each opens a file of Python's own
    fuzz = Fuzz(Path(folder), int(seed))
    fuzz.run(300)  # imports and allocators reach their size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + (3 << 30), resource.RLIM_INFINITY))
    fuzz.run(int(cases))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    sys.stdout.write(json.dumps({**fuzz.outcomes, "grown_bytes": grown}) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: thousands of copies of a cache."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path
    yield path
    shutil.rmtree(path, ignore_errors=True)


def fuzzed(folder: Path, cases: int, *, processes: int, seed: int) -> Counter[str]:
    running = []
    for number in range(processes):
        part = folder / str(number)
        part.mkdir()
        command = [
            sys.executable,
            "-m",
            "tests.cache.test_fuzz",
            str(part),
            str(seed + number),
            str(cases // processes),
        ]
        running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    total = Counter[str]()
    ended = [(process, *process.communicate(timeout=900)) for process in running]
    for process, out, err in ended:
        assert process.returncode == 0, err[-6000:]
        found = json.loads(out)
        assert found.pop("grown_bytes") < 512 << 20, "a mutated input made the reader take memory"
        total.update(found)
    return total


def test_a_few_thousand_mutated_inputs_give_a_cache_error_or_the_planted_bits(folder: Path) -> None:
    found = fuzzed(folder, 2_000, processes=2, seed=1)
    assert found["refused"] > 700, found
    assert found["read"] > 100, found


@pytest.mark.slow
def test_a_hundred_thousand_mutated_inputs_give_a_cache_error_or_the_planted_bits(folder: Path) -> None:
    """Bit flips, cuts, splices, doubled keys, depth, huge numbers, other types; checksums mended to reach past them.
    The helper also holds time, memory, and every file that is opened."""
    found = fuzzed(folder, 110_000, processes=2, seed=1000)
    assert found["parsers"] + found["reader"] + found["on_disk"] + found["writer"] >= 100_000, found
    assert found["on_disk"] >= 2000, found
    assert found["writer"] >= 500, found
    assert found["read"] >= 1000, found


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF).filter(str.isprintable), max_size=20)
digits = st.integers(0, 2**32 - 1).map(lambda value: f"{value:08x}")
sources = st.fixed_dictionaries(
    {"dataset": texts, "revision": texts, "split": texts, "weight": st.floats(1e-300, 1e300), "domain": texts}
)
# The strategies draw values and the tests build objects of them: the type-checking hook uses `random`, which hypothesis
# forbids in a strategy.


@st.composite
def metas(draw: st.DrawFn) -> dict[str, Any]:
    codec = draw(st.sampled_from(sorted(CODECS)))
    return {
        "model": draw(texts),
        "model_revision": draw(st.text("0123456789abcdef", min_size=40, max_size=40)),
        "random_weights": draw(st.booleans()),
        "sources": draw(st.lists(sources, min_size=1, max_size=4)),
        "context": draw(st.integers(1, 1024)),
        "d_model": draw(st.integers(1, 4096)),
        "shard_sequences": draw(st.integers(1, 64)),
        "packing": draw(st.sampled_from(["pack", "truncate"])),
        "bos_token_id": draw(st.integers(-1, 2**31 - 1)),
        "special_token_ids": tuple(draw(st.lists(st.integers(0, 2**31 - 1), max_size=5))),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "held_out_fraction": draw(st.floats(0, 1, exclude_max=True)),
        "codec": codec,
        "quantisation": "int8" if CODECS[codec].quantised else "none",
        "provenance": draw(st.dictionaries(texts, texts, max_size=3)),
    }


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    complete = draw(st.booleans())
    return {
        "layers": tuple(sorted(draw(st.sets(st.integers(0, 9999), min_size=1, max_size=5)))),
        "sequences": draw(st.integers(0, 2**18)),
        "complete": complete,
        "exhausted": draw(st.booleans()),
        "audit": draw(st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
        "manifest_crc32c": draw(digits) if complete else "",
    }


@st.composite
def manifests(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, str]]:
    commits = []
    for shard in draw(st.sets(st.integers(0, 2**40 - 1), max_size=4)):
        n = draw(st.integers(1, 4))
        names = draw(st.lists(texts.filter(bool), min_size=1, max_size=3, unique=True))
        crc32c = {name: "".join(draw(digits) for _ in range(n)) for name in names}
        lengths = tuple(draw(st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n)))
        stored = {names[0]: {"lengths": lengths, "crc32c": "".join(draw(digits) for _ in range(n))}}
        cursor = draw(st.dictionaries(texts, st.integers() | texts | st.lists(st.booleans()), max_size=2))
        kept = stored if draw(st.booleans()) else {}
        commits.append({"shard": shard, "sequences": n, "crc32c": crc32c, "stored": kept, "cursor": cursor})
    return commits, draw(st.dictionaries(texts, digits, max_size=3))


def build_meta(values: dict[str, Any]) -> cache.CacheMeta:
    return make_meta(**{**values, "sources": tuple(cache.Source(**source) for source in values["sources"])})


def build_manifest(commits: list[dict[str, Any]], static: dict[str, str]) -> Manifest:
    built = {}
    for one in commits:
        stored = {name: Stored(**values) for name, values in one["stored"].items()}
        built[one["shard"]] = Commit(**{**one, "stored": stored})
    return Manifest(commits=built, static=static)


@settings(deadline=None)
@given(metas(), states())
def test_metadata_survives_its_json_form(values: dict[str, Any], more: dict[str, Any]) -> None:
    meta, state = build_meta(values), CacheState(**more)
    text = json.dumps(to_attributes(meta, state))
    assert from_attributes(json.loads(text)) == (meta, state)
    assert json.dumps(to_attributes(*from_attributes(json.loads(text)))) == text
    assert from_attributes(json.loads(text))[0].fingerprint == meta.fingerprint


@settings(deadline=None)
@given(metas(), states(), st.data())
def test_no_edited_field_of_the_metadata_passes(
    values: dict[str, Any], more: dict[str, Any], data: st.DataObject
) -> None:
    attributes = to_attributes(build_meta(values), CacheState(**more))
    name = data.draw(st.sampled_from(sorted(attributes)))
    other = data.draw(st.integers() | texts | st.none() | st.booleans() | st.lists(st.integers()))
    if json.dumps(other) != json.dumps(attributes[name]):
        with pytest.raises(cache.CacheError):
            from_attributes({**attributes, name: other})


@settings(deadline=None)
@given(manifests())
def test_a_manifest_survives_its_file_form(parts: Any) -> None:
    known = build_manifest(*parts)
    content = known.content()
    found, whole = manifest.parse(content, "manifest")
    assert whole == len(content)
    assert found == known
    assert found.content() == content


@settings(deadline=None)
@given(manifests(), st.data())
def test_a_manifest_that_ends_early_has_its_first_lines(parts: Any, data: st.DataObject) -> None:
    """A torn append is no damage: what stands before it counts."""
    content = build_manifest(*parts).content()
    end = data.draw(st.integers(0, len(content)))
    found, whole = manifest.parse(content[:end], "manifest")
    assert whole == content[:end].rfind(b"\n") + 1
    assert found.content() == content[:whole]
    assert len(found.commits) + len(found.static) == content[:end].count(b"\n")


@settings(deadline=None)
@given(manifests().filter(any), st.data())
def test_no_flipped_bit_of_a_manifest_passes(parts: Any, data: st.DataObject) -> None:
    content = bytearray(build_manifest(*parts).content())
    at = data.draw(st.integers(0, len(content) - 2))  # the last newline: then the last line is torn
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(cache.CacheError):
        manifest.parse(bytes(content), "manifest")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    path = tmp_path_factory.mktemp("planted") / "c"
    write(path, make_meta(), {3: make_bits(seed=3)}, make_rows())
    return cache.open(str(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_every_way_to_ask_for_rows_gives_the_planted_ones(planted: CacheReader, data: st.DataObject) -> None:
    """Sequences, single rows and windows, in any order, repeated, across shards."""
    torch = pytest.importorskip("torch")
    layer, bits = planted.layer(3), make_bits(seed=3)
    start = data.draw(st.integers(0, N))
    stop = data.draw(st.integers(start, N))
    assert np.array_equal(layer.bits(start, stop), bits[start:stop])
    assert np.array_equal(planted.tokens(start, stop), make_rows().tokens[start:stop])
    wanted = torch.from_numpy(bits.view(np.int16))
    assert torch.equal(layer.sequences(start, stop).view(torch.int16), wanted[start:stop])
    rows = np.array(data.draw(st.lists(st.integers(0, N * T - 1), max_size=40)), np.int64)
    assert torch.equal(layer.rows(rows).view(torch.int16), wanted.reshape(-1, D)[torch.from_numpy(rows)])
    width = data.draw(st.integers(1, T))
    documents = make_rows().document
    runs = [
        (n, p)
        for n in range(N)
        for p in range(T - width + 1)
        if documents[n, p] >= 0 and len(set(documents[n, p : p + width])) == 1
    ]
    if runs:
        drawn = data.draw(st.lists(st.sampled_from(runs), min_size=1, max_size=20))
        n, p = (np.array(values, np.int64) for values in zip(*drawn, strict=True))
        found = layer.windows(n, p, width).view(torch.int16)
        assert torch.equal(found, torch.stack([wanted[i, j : j + width] for i, j in drawn]))


@given(
    st.lists(st.floats(2.0**-15, 2.0**23, allow_subnormal=False), min_size=1, max_size=400),
    st.floats(0.001, 0.999),
)
def test_a_quantile_is_within_half_a_bin_of_the_exact_one(norms: list[float], probability: float) -> None:
    """0.55 % of the norm below which that share of rows lies."""
    histogram = np.bincount(cache.statistics.norm_bin(np.array(norms)), minlength=cache.statistics.BINS)
    found = quantiles(histogram.astype(np.float64), [probability])[0]
    rank = int(np.ceil(probability * len(norms) - 1e-9))
    exact = sorted(norms)[max(rank, 1) - 1]
    assert abs(found / exact - 1) <= 0.0055


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.data())
def test_statistics_are_those_of_numpy_whatever_the_batches(seed: int, n: int, data: st.DataObject) -> None:
    """Bit for bit the same for every cut into batches, and equal to a direct computation."""
    rng = np.random.default_rng(seed)
    bits, rows = make_bits(n, seed=seed % 1000), make_rows(n, seed=seed % 1000)
    rows.tokens[rng.random((n, T)) < 0.1] = BOS
    mask = row_masks(rows.tokens, rows.document, rows.split, BOS)
    x = bf16.to_float32(bits).astype(np.float64)
    packed = []
    for _ in range(2):
        one, at = ShardStatistics(T, D), 0
        while at < n:
            to = data.draw(st.integers(at + 1, n))
            parts = [moments(x[b : b + 1], mask[b : b + 1].astype(np.float64)) for b in range(at, to)]
            whole = cache.statistics.Moments(*[np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
            one.add(at, whole, mask[at:to], rows.tokens[at:to])
            at = to
        packed.append(one.packed())
    assert np.array_equal(packed[0], packed[1])
    found = merge([packed[0]], T, D)
    norm = np.linalg.norm(x, axis=-1)
    for r, member in enumerate(mask.transpose(1, 0, 2)):
        rows_RD = x[member]
        assert found.count[r] == len(rows_RD), ROW_SETS[r]
        if len(rows_RD):
            scale = np.abs(rows_RD).max() + 1e-300
            assert np.allclose(found.mean[r] / scale, rows_RD.mean(0) / scale, atol=1e-12)
            assert np.allclose(found.variance[r] / scale**2, rows_RD.var(0) / scale**2, atol=1e-12)
            assert np.isclose(found.mean_square_norm[r], (rows_RD**2).sum(1).mean(), rtol=1e-12)
            assert found.norm_histogram[r].sum() == len(rows_RD)
    member = mask[:, 0]
    assert np.array_equal(found.position_count, member.sum(0))
    best = np.argsort(-norm[member], kind="stable")[: len(found.top_norm)]
    rows_of = np.flatnonzero(member.reshape(-1))[best]
    assert np.array_equal(found.top_norm[: len(best)], np.sqrt((x * x).sum(-1)).reshape(-1)[rows_of])
    assert np.array_equal(found.top_row[: len(best)], rows_of)
    assert np.array_equal(found.top_token[: len(best)], rows.tokens.reshape(-1)[rows_of])


if __name__ == "__main__":
    main(*sys.argv[1:])
