"""Documents to blocks of token sequences, tokenised in a background thread, resumable at every sequence.

The sequences are a pure function of documents (sources, seed, held-out fraction), tokenizer, context and packing: how
many are taken at a time, and where the stream was interrupted, changes nothing.
Shapes: n sequences, T positions.
"""

import hashlib
import json
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from harvest.errors import HarvestError
from harvest.packing import MIN_TOKENS, Packer, Piece, Row
from harvest.text import Cursor, Documents
from harvest.tokenizer import TextTokenizer, cut

PIECE_CHARACTERS: Final = 2**16
"""Larger documents are tokenised in pieces of at most this length."""
TRUNCATE_CHARACTERS: Final = 32
"""`truncate` looks at this many characters a position at most, or at `PIECE_CHARACTERS` if that is less."""
BATCH_CHARACTERS: Final = 2**17
BATCH_PIECES: Final = 128
QUEUE_BATCHES: Final = 4  # read ahead is lost at the end: enough to hide a slow read, little enough to waste nothing
STATE_VERSION: Final = 1


class TokenBlock(NamedTuple):
    """n sequences, in the order of the stream."""

    tokens: Int32[np.ndarray, "n T"]
    document: Int32[np.ndarray, "n T"]
    """Document of each position; -1 is padding."""
    split: UInt8[np.ndarray, " n"]
    """0 train, 1 held-out."""
    domain: UInt8[np.ndarray, " n"]
    """Index into `Documents.domains`; 0 where there are none."""


class TokenReport(NamedTuple):
    """What the stream has read and how fast, since it was opened; the counts include earlier lives."""

    sequences: int
    documents: int
    """Kept."""
    held_out: int
    """Of these, held out."""
    empty: int
    binary: int
    short: int
    """Too short for `truncate`."""
    tokens_per_second: float
    """Of the tokenizer alone, while it works."""
    waited: float
    """Share of the time since the first `take` that the consumer waited for tokens, 0 to 1."""


class _Work:
    """What the background thread and the consumer share."""

    def __init__(self) -> None:
        self.batches: queue.Queue[list[Piece] | Cursor | BaseException] = queue.Queue(QUEUE_BATCHES)
        self.stop = threading.Event()
        self.tokens = 0
        self.seconds = 0.0

    def put(self, item: list[Piece] | Cursor | BaseException) -> bool:
        """Hand over; False once the consumer is gone."""
        while not self.stop.is_set():
            try:
                self.batches.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class TokenStream:
    """Sequences of T tokens; use it in a `with` block, which ends its thread."""

    def __init__(
        self,
        documents: Documents,
        tokenizer: TextTokenizer,
        *,
        context: int,
        packing: str = "pack",
        min_tokens: int = MIN_TOKENS,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Prepare the stream, from the start or from another stream's `state()`; reading begins with the first `take`.

        Raises:
            HarvestError: an argument out of range, or the state of a stream with other settings.
        """
        self.documents = documents
        self.tokenizer = tokenizer
        bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
        self._packer = Packer(context, packing, bos_token_id=bos, pad_token_id=pad, min_tokens=min_tokens)
        self._key = self._settings_key()
        self._cursor = documents.read().cursor
        self._piece = 0
        self._sequences = 0
        self._ended = False
        if state is not None:
            self._restore(state)
        self._read_to = self._cursor
        self._rows = self._pack()
        self._work = _Work()
        self._thread: threading.Thread | None = None
        self._started = 0.0
        self._waited = 0.0
        weakref.finalize(self, self._work.stop.set)

    def take(self, n: int) -> TokenBlock:
        """The next n sequences, fewer only where the text ends, none after it.

        Raises:
            HarvestError: the whole text gave not one sequence; says what became of its documents.
            RuntimeError: the stream is closed, or an earlier `take` did not finish.
        """
        context = self._packer.context
        tokens, document = np.empty((n, context), dtype=np.int32), np.empty((n, context), dtype=np.int32)
        lanes = np.empty((n, 2), dtype=np.uint8)
        taken = 0
        while taken < n and (row := next(self._rows, None)) is not None:
            tokens[taken], document[taken], lanes[taken] = row
            taken += 1
        if taken < n and not self._ended:
            raise RuntimeError("this stream is closed or was interrupted: open a new one from the last state")
        self._sequences += taken
        if taken < n and not self._sequences:
            raise HarvestError(self._why_nothing())
        return TokenBlock(tokens[:taken], document[:taken], lanes[:taken, 0], lanes[:taken, 1])

    def state(self) -> dict[str, Any]:
        """Where the stream is, after the last sequence taken: for JSON, 2 to 4 bytes for each token of an open row.

        After a `take` that raised, only a state from before it is good.
        """
        return {
            "version": STATE_VERSION,
            "key": self._key,
            "sequences": self._sequences,
            "cursor": json.loads(json.dumps(self._cursor)),
            "piece": self._piece,
            **self._packer.state(),
        }

    def report(self) -> TokenReport:
        """Counts and rates so far; documents are counted up to the one that the last sequence came from."""
        counts, work = (self._read_to if self._ended else self._cursor).counts, self._work
        elapsed = time.monotonic() - self._started if self._started else 0.0
        return TokenReport(
            self._sequences,
            *counts,
            short=self._packer.short,
            tokens_per_second=work.tokens / work.seconds if work.seconds else 0.0,
            waited=self._waited / elapsed if elapsed else 0.0,
        )

    def close(self) -> None:
        """End the thread; nothing can be taken afterwards."""
        self._work.stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._rows, self._ended = iter(()), False

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pack(self) -> Iterator[Row]:
        offset = self._packer.offset
        for piece in self._pieces():
            self._cursor, self._piece = piece.cursor, piece.number
            yield from self._packer.rows(piece, offset)
            offset = 0

    def _pieces(self) -> Iterator[Piece]:
        self._started = time.monotonic()
        limit = PIECE_CHARACTERS
        if self._packer.packing == "truncate":
            limit = min(limit, TRUNCATE_CHARACTERS * self._packer.context)
        arguments = (self.documents, self.tokenizer, self._cursor, self._piece, limit, self._packer.packing, self._work)
        self._thread = threading.Thread(target=_tokenise, args=arguments, name="tokenise", daemon=True)
        self._thread.start()
        while True:
            start = time.monotonic()
            batch = self._work.batches.get()
            self._waited += time.monotonic() - start
            if isinstance(batch, BaseException):
                raise batch
            if isinstance(batch, Cursor):
                self._ended, self._read_to = True, batch
                return
            yield from batch

    def _settings_key(self) -> str:
        packer, documents = self._packer, self.documents
        settings = [
            documents.provenance(),
            [documents.seed, documents.held_out_fraction, documents.blocks],
            [self.tokenizer.hash, packer.context, packer.packing, packer.min_tokens],
        ]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("version") != STATE_VERSION or state.get("key") != self._key:
            raise HarvestError(
                "this state belongs to a stream of other sources, seed, tokenizer, context or packing: start anew"
            )
        self._cursor = Cursor.from_json(state["cursor"])
        self._piece = state["piece"]
        self._sequences = state["sequences"]
        self._packer.restore(state)

    def _why_nothing(self) -> str:
        report = self.report()
        names = ", ".join(source.name for source in self.documents.sources)
        return (
            f"the text of {names} gave not one sequence of {self._packer.context} tokens: {report.documents} documents "
            f"read, {report.short} of them too short; {report.empty} empty and {report.binary} binary ones skipped"
        )


def _tokenise(
    documents: Documents,
    tokenizer: TextTokenizer,
    cursor: Cursor,
    first_piece: int,
    limit: int,
    packing: str,
    work: _Work,
) -> None:
    """The background thread: read, tokenise in batches, hand over; the end of the text is its cursor."""
    reader = documents.read(cursor)
    texts: list[tuple[str, Piece]] = []
    characters = 0
    empty = np.empty(0, dtype=np.int32)
    try:
        for document in reader:
            lane = (int(document.held_out), documents.domain(document.source))
            for number, text in enumerate(cut(document.text, limit)):
                if number < first_piece:
                    continue
                if number and packing == "truncate":
                    break
                texts.append((text, Piece(document.cursor, number, lane, empty)))
                characters += len(text)
                if characters >= BATCH_CHARACTERS or len(texts) >= BATCH_PIECES:
                    if not work.put(_encode(texts, tokenizer, work)):
                        return
                    texts, characters = [], 0
            first_piece = 0
        if texts and not work.put(_encode(texts, tokenizer, work)):
            return
        work.put(reader.cursor)
    except BaseException as error:  # noqa: BLE001 - the consumer raises it
        work.put(error)


def _encode(texts: list[tuple[str, Piece]], tokenizer: TextTokenizer, work: _Work) -> list[Piece]:
    start = time.monotonic()
    ids = tokenizer.encode([text for text, _ in texts])
    work.seconds += time.monotonic() - start
    work.tokens += sum(map(len, ids))
    return [piece._replace(ids=one) for (_, piece), one in zip(texts, ids, strict=True)]
