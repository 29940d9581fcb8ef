"""A streamed data set, through the code that reads the hub; the files lie in a local folder instead."""

import json
from collections import Counter
from pathlib import Path

import pytest
import zstandard

import harvest.corpora
import harvest.text
from harvest.corpora import HubDataset
from harvest.errors import HarvestError
from harvest.text import Documents, TextSource

TEXTS = [f"text {i}" for i in range(60)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of 20 documents, and a hub that gives every name one commit."""
    monkeypatch.setattr(harvest.corpora, "resolve_dataset", lambda *_: "c" * 40)
    (tmp_path / "data").mkdir()
    for part in range(3):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[part * 20 : part * 20 + 20])
        (tmp_path / "data" / f"train-{part}-of-3.jsonl").write_text(lines)
    return tmp_path


def test_files_are_units_and_reading_skips_within_one(folder: Path) -> None:
    corpus = HubDataset(str(folder), None, None, "train", "text")
    assert (corpus.units, corpus.revision) == (3, "c" * 40)
    assert list(corpus.read(1, 15)) == TEXTS[35:40]


def test_a_stream_of_the_hub_is_shuffled_and_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvest.text, "open_corpus", lambda *_: HubDataset(str(folder), None, None, "train", "text"))
    documents = Documents([TextSource(text="owner/name")], block_documents=16)
    assert documents.provenance()[0]["dataset"] == "owner/name"
    found = list(documents.read())
    assert Counter(document.text for document in found) == Counter(TEXTS)
    assert [document.text for document in found] != TEXTS
    for number in (0, 15, 16, 31, 59):
        assert list(documents.read(found[number].cursor)) == found[number:]


def test_a_wrong_column_or_split_is_one_line(folder: Path) -> None:
    with pytest.raises(HarvestError, match="has no field 'body': choose from text"):
        HubDataset(str(folder), None, None, "train", "body")
    with pytest.raises(HarvestError, match="split 'test'") as caught:
        HubDataset(str(folder), None, None, "test", "text")
    assert "\n" not in str(caught.value)


def test_files_of_the_hub_may_be_compressed_as_those_of_the_pile_are(folder: Path) -> None:
    for file in (folder / "data").iterdir():
        file.with_name(f"{file.name}.zst").write_bytes(zstandard.compress(file.read_bytes()))
        file.unlink()
    corpus = HubDataset(str(folder), None, None, "train", "text")
    assert list(corpus.read(1, 15)) == TEXTS[35:40]
