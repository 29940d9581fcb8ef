"""Sequences: what stands in a row, that nothing depends on chunks, and that every boundary can be resumed."""

import gc
import json
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harvest.errors import HarvestError
from harvest.text import Documents, TextSource, is_held_out
from harvest.tokenizer import TextTokenizer, cut, load_tokenizer
from harvest.tokens import TokenBlock, TokenStream

SEED = 3
WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "17",
    "lazy",
    "wizards",
    "(old",
    "ones)",
    "boil",
    "tea,",
    "slowly.",
)
BOS, EOS, PAD = 0, 1, 2


def sentence(seed: int, n: int) -> str:
    generator = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in generator.integers(0, len(WORDS), n))


CORPUS = [sentence(i, 1 + (i * 7) % 90) for i in range(60)]


def train_backend(style: str) -> Tokenizer:
    """A small BPE: `bytes` as in GPT-2 and Llama 3, `metaspace` as in Gemma (spaces become ▁, no pre-tokenizer)."""
    backend = Tokenizer(models.BPE(byte_fallback=False))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if style == "bytes" else [],
    )
    if style == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.decoder = decoders.Replace("▁", " ")
    backend.train_from_iterator([*CORPUS, "<>bos eos pad\n\t\0"], trainer)
    return backend


@pytest.fixture(scope="module", params=["bytes", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    backend = train_backend(request.param)
    return TextTokenizer(backend, bos_token_id=BOS, pad_token_id=PAD, special_token_ids=(BOS, EOS, PAD))


@pytest.fixture(scope="module")
def tokenizer_of_bytes() -> TextTokenizer:
    return TextTokenizer(train_backend("bytes"), bos_token_id=BOS, pad_token_id=PAD, special_token_ids=(BOS, EOS, PAD))


def corpus(texts: Sequence[str] = CORPUS, held_out: float = 0.3) -> Documents:
    return Documents([TextSource(text=list(texts))], seed=SEED, held_out_fraction=held_out, block_documents=7)


def two_domains() -> Documents:
    sources = [
        TextSource(text=CORPUS[:30], weight=2.0, domain="retain"),
        TextSource(text=lambda: iter(CORPUS[30:]), domain="forget"),
    ]
    return Documents(sources, seed=SEED, held_out_fraction=0.3, block_documents=7)


def take_all(stream: TokenStream, chunk: int = 10_000) -> TokenBlock:
    blocks = []
    with stream:
        while len((block := stream.take(chunk)).tokens):
            blocks.append(block)
    return TokenBlock(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def same(one: TokenBlock, other: TokenBlock) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_document_fills_rows_and_comes_back_as_text(tokenizer: TextTokenizer) -> None:
    """The first rows of a known text: BOS, then its tokens in order, nothing between them."""
    text = sentence(99, 200)
    block = take_all(TokenStream(corpus([text], held_out=0.0), tokenizer, context=16))
    ids = tokenizer.encode([text])[0]
    assert (block.tokens[:, 0] == BOS).all()
    body = block.tokens[:, 1:].ravel()
    assert np.array_equal(body, ids[: len(body)])
    assert len(ids) - len(body) < 15  # only the tail that fills no row is gone
    assert text.startswith(tokenizer.decode(body.tolist()))
    assert (block.document == 0).all()
    assert block.tokens.dtype == block.document.dtype == np.int32


def test_documents_are_joined_with_bos_between_them(tokenizer: TextTokenizer) -> None:
    """Putting the documents of a lane together by hand gives the rows."""
    documents = corpus()
    block = take_all(TokenStream(documents, tokenizer, context=12))
    for split in (0, 1):
        expected: list[int] = []
        owners: list[int] = []
        for number, document in enumerate(documents.read()):
            if document.held_out != bool(split):
                continue
            if len(expected) % 12:
                expected.append(BOS)
                owners.append(number)
            for token in tokenizer.encode([document.text])[0].tolist():
                if len(expected) % 12 == 0:
                    expected.append(BOS)
                    owners.append(number)
                expected.append(token)
                owners.append(number)
        rows = block.split == split
        n = int(rows.sum()) * 12
        assert n == len(expected) // 12 * 12
        assert np.array_equal(block.tokens[rows].ravel(), expected[:n])
        assert np.array_equal(block.document[rows].ravel(), owners[:n])


def test_bos_stands_at_row_starts_and_document_starts_only(tokenizer: TextTokenizer) -> None:
    block = take_all(TokenStream(corpus(), tokenizer, context=12))
    changes = np.diff(block.document, axis=1) != 0
    assert (block.tokens[:, 0] == BOS).all()
    assert np.array_equal(block.tokens[:, 1:] == BOS, changes)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_a_document_has_one_split_and_so_has_a_row(packing: str, tokenizer: TextTokenizer) -> None:
    documents = two_domains()
    block = take_all(TokenStream(documents, tokenizer, context=12, packing=packing))
    by_id = list(documents.read())
    assert set(block.split) == {0, 1}
    assert set(block.domain) == {0, 1}
    for row in range(len(block.tokens)):
        for number in set(block.document[row].tolist()) - {-1}:
            assert by_id[number].held_out == bool(block.split[row])
            assert is_held_out(by_id[number].text, SEED, 0.3) == bool(block.split[row])
            assert documents.domain(by_id[number].source) == block.domain[row]


@pytest.mark.parametrize("packing", ["pack", "truncate"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_the_stream_is_the_same_in_any_chunks(
    chunk: int, packing: str, tokenizer_of_bytes: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take_all(TokenStream(two_domains(), tokenizer_of_bytes, context=12, packing=packing))
    assert len(whole.tokens) > 40
    monkeypatch.setattr("harvest.tokens.BATCH_PIECES", chunk)
    again = take_all(TokenStream(two_domains(), tokenizer_of_bytes, context=12, packing=packing), chunk=chunk)
    assert same(whole, again)


@pytest.mark.parametrize("packing", ["pack", "truncate"])
@pytest.mark.parametrize("pieces", [40, 2**16])
def test_every_boundary_resumes_byte_for_byte(
    pieces: int, packing: str, tokenizer_of_bytes: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a document that is tokenised in pieces, and again from a resumed stream."""
    monkeypatch.setattr("harvest.tokens.PIECE_CHARACTERS", pieces)
    monkeypatch.setattr("harvest.tokenizer.CUT_WINDOW", 30)

    def stream(state: dict[str, Any] | None = None) -> TokenStream:
        return TokenStream(two_domains(), tokenizer_of_bytes, context=12, packing=packing, state=state)

    whole = take_all(stream())
    with stream() as uninterrupted:
        for row in range(len(whole.tokens)):
            state = json.loads(json.dumps(uninterrupted.state()))
            assert len(json.dumps(state)) < 1000
            with stream(state) as resumed:
                assert resumed.state() == state
                one = resumed.take(2)
                assert same(one, TokenBlock(*(part[row : row + 2] for part in whole)))
            uninterrupted.take(1)
            if row == len(whole.tokens) // 2:
                with stream(state) as resumed:
                    resumed.take(1)
                    assert resumed.state() == uninterrupted.state()
        end = uninterrupted.state()
        assert len(uninterrupted.take(5).tokens) == 0
        totals = uninterrupted.report()
    with stream(json.loads(json.dumps(end))) as resumed:
        assert len(resumed.take(5).tokens) == 0
        assert resumed.report()[:6] == totals[:6]
        after = resumed.state()
    with stream(after) as resumed:
        assert len(resumed.take(5).tokens) == 0


def test_a_larger_request_begins_with_the_smaller_one(tokenizer_of_bytes: TextTokenizer) -> None:
    with TokenStream(corpus(), tokenizer_of_bytes, context=12) as stream:
        first, state = stream.take(20), stream.state()
        rest = stream.take(10_000)
    whole = take_all(TokenStream(corpus(), tokenizer_of_bytes, context=12))
    assert same(first, TokenBlock(*(part[:20] for part in whole)))
    resumed = take_all(TokenStream(corpus(), tokenizer_of_bytes, context=12, state=state))
    assert same(rest, resumed)


def test_truncate_gives_one_padded_document_a_row(tokenizer: TextTokenizer) -> None:
    documents = corpus()
    with TokenStream(documents, tokenizer, context=24, packing="truncate", min_tokens=10) as stream:
        block = stream.take(1000)
        report = stream.report()
    lengths = (block.document >= 0).sum(axis=1)
    kept = 0
    for number, document in enumerate(documents.read()):
        ids = tokenizer.encode([document.text])[0]
        if len(ids) + 1 < 10:
            continue
        length = min(24, len(ids) + 1)
        assert lengths[kept] == length
        assert block.tokens[kept].tolist() == [BOS, *ids[: length - 1], *[PAD] * (24 - length)]
        assert block.document[kept].tolist() == [number] * length + [-1] * (24 - length)
        assert block.split[kept] == document.held_out
        kept += 1
    assert kept == len(block.tokens)
    assert report.short == len(CORPUS) - kept > 0
    assert lengths.min() < 24


def test_text_cannot_forge_special_tokens(tokenizer: TextTokenizer) -> None:
    block = take_all(TokenStream(corpus(["<bos> fox <eos> dog <pad> " * 30], held_out=0.0), tokenizer, context=16))
    assert not np.isin(block.tokens[:, 1:], (BOS, EOS, PAD)).any()


def test_large_documents_are_cut_where_no_token_is(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sentence(5, 30_000) + "\n\n  indented\t" + sentence(6, 5000)
    whole = tokenizer.encode([text])[0]
    monkeypatch.setattr("harvest.tokens.PIECE_CHARACTERS", 500)
    block = take_all(TokenStream(corpus([text], held_out=0.0), tokenizer, context=33))
    body = block.tokens[:, 1:].ravel()
    assert np.array_equal(body, whole[: len(body)])
    assert len(whole) - len(body) < 32


def test_a_cut_loses_nothing_and_keeps_the_limit() -> None:
    for text in ("", "word", "a b c d e f g", "x" * 100, "ab  \n  cd " * 20, " " * 50, sentence(1, 60)):
        for limit in (1, 2, 5, 17):
            pieces = list(cut(text, limit))
            assert "".join(pieces) == text
            assert max(map(len, pieces)) <= limit
            assert len(pieces) == 1 or min(map(len, pieces)) > 0
    for before, after in pairwise(cut(sentence(2, 400), 100)):
        assert not before[-1].isspace()
        assert after[0].isspace()


def test_a_document_of_ten_megabytes_becomes_rows(tokenizer_of_bytes: TextTokenizer) -> None:
    """The first rows come before the whole of it is tokenised: the queue bounds what is held."""
    text = sentence(7, 20_000) * 100
    assert len(text) > 9_000_000
    with TokenStream(corpus([text], held_out=0.0), tokenizer_of_bytes, context=128) as stream:
        assert stream.take(50).tokens.shape == (50, 128)
        state = stream.state()
        wanted = stream.take(50)
    assert len(json.dumps(state)) < 1000
    with TokenStream(corpus([text], held_out=0.0), tokenizer_of_bytes, context=128, state=state) as stream:
        assert same(stream.take(50), wanted)


def test_what_was_skipped_is_counted(tokenizer_of_bytes: TextTokenizer) -> None:
    texts = ["", "fox \0", "   ", *CORPUS]
    with TokenStream(corpus(texts), tokenizer_of_bytes, context=12) as stream:
        n = len(stream.take(1000).tokens)
        report = stream.report()
    assert (report.sequences, report.documents, report.empty, report.binary) == (n, len(CORPUS), 2, 1)
    assert report.held_out == sum(is_held_out(text, SEED, 0.3) for text in CORPUS)
    assert report.tokens_per_second > 0
    assert 0 <= report.waited <= 1


def test_a_text_without_one_sequence_is_refused_with_the_counts(tokenizer_of_bytes: TextTokenizer) -> None:
    with (
        TokenStream(corpus(["fox", "", "dog\0"]), tokenizer_of_bytes, context=64) as stream,
        pytest.raises(HarvestError, match=r"not one sequence of 64 tokens: 1 documents read.*1 empty and 1 binary"),
    ):
        stream.take(1)


def test_an_error_in_the_thread_reaches_the_consumer(tokenizer_of_bytes: TextTokenizer, tmp_path: Path) -> None:
    once = Documents([TextSource(text=iter(CORPUS))], seed=SEED)
    take_all(TokenStream(once, tokenizer_of_bytes, context=12))
    with (
        TokenStream(once, tokenizer_of_bytes, context=12) as stream,
        pytest.raises(HarvestError, match="was read before"),
    ):
        stream.take(1)
    with pytest.raises(RuntimeError, match="closed or was interrupted"):
        stream.take(1)


def test_a_closed_stream_gives_no_end_of_text(tokenizer_of_bytes: TextTokenizer) -> None:
    with TokenStream(corpus(), tokenizer_of_bytes, context=12) as stream:
        stream.take(1)
    with pytest.raises(RuntimeError, match="closed or was interrupted"):
        stream.take(1)


def test_a_forgotten_stream_ends_its_thread(tokenizer_of_bytes: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvest.tokens.BATCH_PIECES", 1)
    stream = TokenStream(corpus(), tokenizer_of_bytes, context=12)
    stream.take(1)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "tokenise"]
    del stream
    gc.collect()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_a_state_of_other_settings_is_refused(tokenizer_of_bytes: TextTokenizer) -> None:
    with TokenStream(corpus(), tokenizer_of_bytes, context=12) as stream:
        state = stream.state()
    for documents, context, packing in (
        (corpus(), 13, "pack"),
        (corpus(), 12, "truncate"),
        (two_domains(), 12, "pack"),
    ):
        with pytest.raises(HarvestError, match="belongs to a stream of other"):
            TokenStream(documents, tokenizer_of_bytes, context=context, packing=packing, state=state)


def test_arguments_out_of_range_are_refused(tokenizer_of_bytes: TextTokenizer) -> None:
    for options, message in (
        ({"context": 1}, "at least 2 positions"),
        ({"context": 12, "packing": "squeeze"}, "choose from pack, truncate"),
        ({"context": 12, "min_tokens": 13}, "must have 1 to 12 tokens"),
    ):
        with pytest.raises(HarvestError, match=message):
            TokenStream(corpus(), tokenizer_of_bytes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("special", "bos", "pad"),
    [
        ({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}, BOS, PAD),
        ({"bos_token": "<eos>", "eos_token": "<eos>"}, EOS, EOS),  # GPT-2, Pythia
        ({"eos_token": "<eos>", "pad_token": "<pad>"}, EOS, PAD),  # Qwen
    ],
)
def test_a_tokenizer_without_bos_begins_rows_with_eos(
    special: dict[str, str], bos: int, pad: int, tmp_path: Path
) -> None:
    saved = PreTrainedTokenizerFast(tokenizer_object=train_backend("bytes"), **special)
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.bos_token_id, loaded.pad_token_id) == (bos, pad)
    assert set(loaded.special_token_ids) >= {bos}
    assert len(loaded.hash) == 64
    assert loaded.hash == load_tokenizer(str(tmp_path)).hash
    block = take_all(TokenStream(corpus(), loaded, context=12))
    assert (block.tokens[:, 0] == bos).all()
    assert not ((block.tokens[:, 1:] == bos) & (block.tokens[:, :-1] == bos)).any()


def test_a_tokenizer_with_neither_bos_nor_eos_is_refused(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=train_backend("bytes")).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(HarvestError, match="neither a BOS nor an EOS"):
        load_tokenizer(str(tmp_path))
