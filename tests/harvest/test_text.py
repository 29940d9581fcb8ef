"""Documents: what is a document in every format, what is skipped, how sources mix, and where the split falls."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from harvest import files
from harvest.errors import HarvestError
from harvest.shuffle import permutation
from harvest.sources import parse_sources
from harvest.text import Counts, Cursor, Document, Documents, TextSource, is_held_out

PINNED_HELD_OUT = [11, 18, 65]
PINNED_ORDER = [6, 9, 4, 0, 2, 3, 1, 7, 8, 11, 5, 10]
TEXTS = [f"document {i} says {i * i}" for i in range(40)]


def documents(*sources: TextSource, seed: int = 1, held_out: float = 0.25, block: int = 7) -> Documents:
    return Documents(sources, seed=seed, held_out_fraction=held_out, block_documents=block)


def read(source: TextSource, **options: int) -> list[str]:
    return [document.text for document in documents(source, **options).read()]


def counts(source: TextSource) -> Counts:
    reader = documents(source).read()
    assert sum(1 for _ in reader) == reader.cursor.counts.documents
    return reader.cursor.counts


def write_formats(folder: Path) -> dict[str, TextSource]:
    """The same documents in every form that can be read."""
    folder.mkdir()
    lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "lines.jsonl").write_text(lines)
    with gzip.open(folder / "lines.jsonl.gz", "wt") as opened:
        opened.write(lines)
    (folder / "joined.txt").write_text("\n\n".join(TEXTS))
    with gzip.open(folder / "joined.txt.gz", "wt") as opened:
        opened.write("\n\n".join(TEXTS))
    half = len(lines) // 2  # frames end anywhere, also within a line
    frames = [zstandard.compress(part.encode()) for part in (lines[:half], lines[half:])]
    (folder / "lines.jsonl.zst").write_bytes(b"".join(frames))
    (folder / "joined.txt.zst").write_bytes(zstandard.compress("\n\n".join(TEXTS).encode()))
    parquet.write_table(pa.table({"text": TEXTS, "id": range(40)}), folder / "rows.parquet", row_group_size=9)
    (folder / "many").mkdir()
    for i, text in enumerate(TEXTS):
        (folder / "many" / f"{i:02}.txt").write_text(text)
    (folder / "mixed").mkdir()
    parquet.write_table(pa.table({"text": TEXTS[:15]}), folder / "mixed" / "a.parquet", row_group_size=4)
    (folder / "mixed" / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[15:39]))
    (folder / "mixed" / "c.txt").write_text(TEXTS[39])
    (folder / "mixed" / "README.md").write_text("not read")
    return {
        "jsonl": TextSource(text=str(folder / "lines.jsonl")),
        "jsonl.gz": TextSource(text=str(folder / "lines.jsonl.gz")),
        "jsonl.zst": TextSource(text=str(folder / "lines.jsonl.zst")),
        "txt.zst": TextSource(text=str(folder / "joined.txt.zst"), separator="\n\n"),
        "txt": TextSource(text=str(folder / "joined.txt"), separator="\n\n"),
        "txt.gz": TextSource(text=str(folder / "joined.txt.gz"), separator="\n\n"),
        "parquet": TextSource(text=str(folder / "rows.parquet")),
        "folder of txt": TextSource(text=str(folder / "many")),
        "mixed folder": TextSource(text=str(folder / "mixed")),
        "list": TextSource(text=TEXTS),
        "function": TextSource(text=lambda: iter(TEXTS)),
    }


FORMATS = (
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "txt",
    "txt.gz",
    "txt.zst",
    "parquet",
    "folder of txt",
    "mixed folder",
    "list",
    "function",
)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_every_document_once_shuffled_by_seed(form: str, tmp_path: Path) -> None:
    source = write_formats(tmp_path / "text")[form]
    first = read(source, seed=1)
    assert Counter(first) == Counter(TEXTS)
    assert first != TEXTS
    assert first == read(source, seed=1) != read(source, seed=2)


@pytest.mark.parametrize("form", FORMATS)
def test_reading_resumes_at_every_document(form: str, tmp_path: Path) -> None:
    whole = documents(write_formats(tmp_path / "text")[form])
    wanted = list(whole.read())
    for number, document in enumerate(wanted):
        cursor = Cursor.from_json(json.loads(json.dumps(document.cursor)))
        assert cursor == document.cursor
        assert list(whole.read(cursor)) == wanted[number:]


@pytest.mark.parametrize("form", ["jsonl", "folder of txt", "list"])
def test_a_seekable_source_is_permuted_whole(form: str, tmp_path: Path) -> None:
    """Blocks of 7 do not confine it: the first documents come from everywhere."""
    first = read(write_formats(tmp_path / "text")[form])[:10]
    assert max(TEXTS.index(text) for text in first) > 25
    assert min(TEXTS.index(text) for text in first) < 15


def test_every_block_of_a_stream_has_its_own_order() -> None:
    order = [TEXTS.index(text) for text in read(TextSource(text=lambda: iter(TEXTS)))]
    blocks = [tuple(i - start for i in order[start : start + 7]) for start in range(0, 35, 7)]
    assert all(sorted(block) == list(range(7)) for block in blocks)
    assert len(set(blocks)) == 5


def test_without_a_separator_a_txt_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as opened:
        opened.write("three")
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(b"four"))
    assert sorted(read(TextSource(text=str(tmp_path)))) == ["four", "one\n\ntwo\n", "three"]


def test_empty_and_binary_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    texts = ["good", "", " \n\t ", "NUL \x00 inside", "lone \ud800 surrogate", "good too"]
    assert counts(TextSource(text=texts))[2:] == (2, 2)
    lines = [b'{"text": "good"}', b"not json", b'{"text": 5}', b'{"body": "x"}', b"[1]", b'{"text": "\xff"}']
    lines += [b'{"text": null}', b"", b'{"text": "\\ud800"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert counts(TextSource(text=str(tmp_path / "a.jsonl"))) == Counts(1, 0, 2, 6)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_bytes(b"\xff\xfe\x00junk")
    (tmp_path / "folder" / "b.txt").write_bytes(b"\xef\xbb\xbfwith a byte order mark")
    (tmp_path / "folder" / "c.txt").write_bytes(b"")
    assert read(TextSource(text=str(tmp_path / "folder"))) == ["with a byte order mark"]
    assert counts(TextSource(text=str(tmp_path / "folder")))[2:] == (1, 1)


def test_a_large_document_is_one_document(tmp_path: Path) -> None:
    text = "word " * 2_000_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    assert read(TextSource(text=str(tmp_path / "a.jsonl"))) == [text]


def test_sources_mix_by_their_share_of_characters() -> None:
    """Weights 3 : 1 hold at every point, whatever the lengths, until the smaller source ends; the rest still comes."""
    long = [f"{i:04} " + "a" * 95 for i in range(300)]
    short = [f"{i:04} bbbbb" for i in range(400)]
    mixed = documents(
        TextSource(text=long, weight=3.0, domain="retain"), TextSource(text=short, weight=1.0, domain="forget")
    )
    assert mixed.domains == ("retain", "forget")
    assert [mixed.domain(source) for source in (0, 1)] == [0, 1]
    found = list(mixed.read())
    assert Counter(document.text for document in found) == Counter(long + short)
    taken = [0, 0]
    for document in found:
        assert abs(taken[0] / 3 - taken[1]) <= 100 or taken[1] == 4000
        taken[document.source] += len(document.text)
    assert list(mixed.read(found[333].cursor)) == found[333:]


@given(st.text(), st.integers(0, 2**63 - 1))
def test_the_split_depends_on_content_and_seed_alone(text: str, seed: int) -> None:
    assert is_held_out(text, seed, 0.3) == is_held_out(text, seed, 0.3)
    assert not is_held_out(text, seed, 0.0)
    assert is_held_out(text, seed, 0.3) <= is_held_out(text, seed, 0.6)  # a larger fraction only adds


def test_the_split_has_the_asked_size_and_is_pinned() -> None:
    held_out = [is_held_out(f"text {i}", 42, 0.05) for i in range(20_000)]
    assert 0.045 < sum(held_out) / 20_000 < 0.055
    assert [i for i in range(100) if held_out[i]] == PINNED_HELD_OUT


def test_copies_of_a_document_are_on_the_same_side() -> None:
    found = documents(TextSource(text=TEXTS * 3)).read()
    sides: dict[str, set[bool]] = {}
    for document in found:
        sides.setdefault(document.text, set()).add(document.held_out)
    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == set.union(*sides.values())


def test_the_order_is_pinned() -> None:
    """A golden order: another one would change every cache."""
    assert permutation(12, 42).tolist() == PINNED_ORDER
    assert sorted(permutation(1000, 7).tolist()) == list(range(1000))
    assert permutation(0, 1).tolist() == []


def test_an_iterator_is_read_once() -> None:
    once = documents(TextSource(text=iter(TEXTS)))
    assert Counter(document.text for document in once.read()) == Counter(TEXTS)
    with pytest.raises(HarvestError, match="was read before"):
        next(iter(once.read()))


def test_a_stream_is_read_no_further_than_its_block() -> None:
    """Bounded memory: a stream without an end is fine."""

    def endless() -> Iterator[str]:
        while True:
            read_so_far.append(1)
            yield "again"

    read_so_far: list[int] = []
    reader = iter(documents(TextSource(text=endless), block=7).read())
    found: list[Document] = [next(reader) for _ in range(10)]
    assert len(found) == 10
    assert len(read_so_far) == 14


def test_provenance_names_content_and_not_places(tmp_path: Path) -> None:
    source = write_formats(tmp_path / "text")["jsonl"]
    (record,) = documents(source).provenance()
    assert record["dataset"] == "lines.jsonl"
    assert len(record["revision"]) == 40
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "text" / "lines.jsonl").rename(tmp_path / "elsewhere" / "lines.jsonl")
    assert documents(TextSource(text=str(moved))).provenance() == [record]
    moved.write_text(moved.read_text().replace("says", "said"))
    assert documents(TextSource(text=str(moved))).provenance() != [record]


def test_text_that_is_changed_anywhere_is_another_text(tmp_path: Path) -> None:
    """One letter in the middle of 3 MiB, the size and the time of change as they were."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"document {i:06}"}) + "\n" for i in range(110_000)))
    before, status = documents(TextSource(text=str(file))).provenance(), file.stat()
    with file.open("r+b") as opened:
        opened.seek(status.st_size // 2)
        content = opened.read(100)
        opened.seek(status.st_size // 2)
        opened.write(content.replace(b"document", b"Document"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert documents(TextSource(text=str(file))).provenance() != before


def test_reading_much_text_to_identify_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_formats(tmp_path / "text")["mixed folder"]
    documents(source)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(files, "SLOW_BYTES", 100)
    documents(source)
    assert "GB of text once" in capsys.readouterr().err


def test_the_miniature_writes_without_an_end_and_resumes_anywhere() -> None:
    mini = documents(TextSource(text="miniature"))
    reader = iter(mini.read())
    first = [next(reader) for _ in range(30)]
    again = iter(mini.read(first[20].cursor))
    assert [next(again) for _ in range(10)] == first[20:]


def test_the_command_line_form_of_sources() -> None:
    forget, retain = parse_sources("forget.jsonl=forget*1.5,owner/name=retain")
    assert (forget.text, forget.domain, forget.weight) == ("forget.jsonl", "forget", 1.5)
    assert (retain.text, retain.domain, retain.weight) == ("owner/name", "retain", 1.0)
    for wrong in ("", "a,,b", "=x", "a*heavy"):
        with pytest.raises(HarvestError, match=r"NAME\[:CONFIG\]\[=DOMAIN\]\[\*WEIGHT\]"):
            parse_sources(wrong)


def test_a_configuration_of_a_hub_data_set_follows_its_name() -> None:
    bio, cyber = parse_sources("cais/wmdp:bio-corpus=forget*2,cais/wmdp=retain")
    assert (bio.text, bio.config, bio.domain, bio.weight) == ("cais/wmdp", "bio-corpus", "forget", 2.0)
    assert (cyber.text, cyber.config, cyber.domain) == ("cais/wmdp", None, "retain")


@pytest.mark.parametrize("name", ["x=1.jsonl", "a,b.txt", "2*3.txt", "a:b.jsonl", "x=1,y*2,z=3"])
def test_a_path_that_exists_is_that_path_whatever_signs_it_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (Path(name), Path("folder") / name):
        place.parent.mkdir(exist_ok=True)
        place.write_text("text")
        (alone,) = parse_sources(str(place))
        assert (alone.text, alone.domain, alone.weight) == (str(place), "", 1.0)
        tagged, other = parse_sources(f"{place}=forget*1.5,owner/name=retain")
        assert (tagged.text, tagged.domain, tagged.weight) == (str(place), "forget", 1.5)
        assert (other.text, other.domain) == ("owner/name", "retain")
        first, second = parse_sources(f"owner/name*2,{place}")
        assert (first.text, first.weight, second.text) == ("owner/name", 2.0, str(place))


def test_options_reach_the_sources_that_have_a_use_for_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one--two")
    both = f"{tmp_path / 'a.txt'},owner/name,miniature"
    options = {"split": "test", "revision": "v1", "column": "body", "separator": "--"}
    local, hub, mini = parse_sources(both, options)
    assert (local.split, local.revision, local.column, local.separator) == ("train", None, "body", "--")
    assert (hub.split, hub.revision, hub.column, hub.separator) == ("test", "v1", "body", None)
    assert mini == TextSource(text="miniature")
    with pytest.raises(HarvestError, match=r"DATASET_SPLIT 'test' means nothing for a.txt: leave it out"):
        parse_sources(str(tmp_path / "a.txt"), {"split": "test"})


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.jsonl").write_text('{"body": "x", "id": 1}\n')
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "wrong.parquet")
    (tmp_path / "damaged.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])
    stored = zstandard.compress(b"".join(b'{"text": "x%d"}\n' % i for i in range(10**5)))
    (tmp_path / "torn.jsonl.zst").write_bytes(stored[:-5])
    (tmp_path / "damaged.jsonl.zst").write_bytes(b"(\xb5/\xfd and nothing else")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing else")
    cases = {
        str(tmp_path / "empty"): "holds no text: wanted .txt",
        str(tmp_path / "nowhere.txt"): "no file or folder",
        str(tmp_path / "wrong.jsonl"): "has no field 'text': choose from body, id",
        str(tmp_path / "wrong.parquet"): "has no field 'text': choose from body",
        str(tmp_path / "damaged.jsonl.gz"): "cannot read text source damaged.jsonl.gz",
        str(tmp_path / "torn.jsonl.zst"): "cannot read text source torn.jsonl.zst: the file ends inside",
        str(tmp_path / "damaged.jsonl.zst"): "cannot read text source damaged.jsonl.zst",
        str(tmp_path / "damaged.parquet"): "cannot read text source damaged.parquet",
    }
    for path, message in cases.items():
        with pytest.raises(HarvestError) as caught:
            read(TextSource(text=path))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_arguments_out_of_range_are_refused() -> None:
    one = TextSource(text=TEXTS)
    for sources, options, message in (
        ((), {}, "1 to 255 text sources"),
        ((TextSource(text=TEXTS, weight=0.0),), {}, "above 0"),
        ((one, TextSource(text=TEXTS, domain="x")), {}, "tag all of them or none"),
        ((one,), {"seed": -1}, "seed"),
        ((one,), {"held_out": 1.0}, "held-out fraction"),
    ):
        with pytest.raises(HarvestError, match=message):
            documents(*sources, **options)
