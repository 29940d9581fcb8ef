"""Token ids to rows of T positions; every row has one split and one domain.

`pack`: documents are joined. BOS stands at position 0 of every row and before every document; there it belongs to the
document that follows. A long one goes on in the next row of its lane. At the end a tail that fills no row is dropped.
`truncate`: one document a row, BOS first, cut after T tokens or padded to them on the right; document -1 is padding.
Attention is not cut at document borders: a row is one causal context, as in the models' own training.
Shapes: T positions.
"""

import base64
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harvest.errors import HarvestError
from harvest.text import Cursor

PACKINGS: Final = ("pack", "truncate")
PADDING: Final = -1
MIN_TOKENS: Final = 8
"""`truncate` skips documents that have fewer tokens than this, BOS included."""


class Piece(NamedTuple):
    """Token ids of one document, or of a part of a large one."""

    cursor: Cursor
    """Where its document stands."""
    number: int
    """Which part of the document this is."""
    lane: tuple[int, int]
    """Split (0 train, 1 held-out) and domain."""
    ids: NDArray[np.int32]

    @property
    def document(self) -> int:
        """Id of the document: its number among all documents kept, in the order of reading."""
        return self.cursor.counts.documents


class Row(NamedTuple):
    """One finished sequence; the arrays belong to the receiver until the next row."""

    tokens_T: NDArray[np.int32]
    document_T: NDArray[np.int32]
    lane: tuple[int, int]


class _Lane:
    """A row that is being filled."""

    def __init__(self, context: int) -> None:
        self.tokens_T = np.zeros(context, dtype=np.int32)
        self.document_T = np.zeros(context, dtype=np.int32)
        self.filled = 0

    def put(self, ids: NDArray[np.int32] | int, document: int, n: int = 1) -> None:
        """Append n tokens of one document."""
        self.tokens_T[self.filled : self.filled + n] = ids
        self.document_T[self.filled : self.filled + n] = document
        self.filled += n


class Packer:
    """Fills one row a lane; what it holds between two rows is its whole state."""

    def __init__(
        self, context: int, packing: str, *, bos_token_id: int, pad_token_id: int, min_tokens: int = MIN_TOKENS
    ) -> None:
        """Start with empty lanes.

        Raises:
            HarvestError: an argument out of range.
        """
        if packing not in PACKINGS:
            raise HarvestError(f"unknown packing {packing!r}: choose from {', '.join(PACKINGS)}")
        if context < 2:
            raise HarvestError(f"a row needs at least 2 positions, BOS and a token; got a context of {context}")
        if not 1 <= min_tokens <= context:
            raise HarvestError(f"the shortest document must have 1 to {context} tokens, got {min_tokens}")
        self.context = context
        self.packing = packing
        self.min_tokens = min_tokens
        self.bos_token_id = bos_token_id
        self.pad_token_id = pad_token_id
        self.offset = 0
        """Tokens of the current piece that are packed."""
        self.short = 0
        """Documents skipped by `truncate` so far."""
        self._lanes: dict[tuple[int, int], _Lane] = {}

    def rows(self, piece: Piece, offset: int = 0) -> Iterator[Row]:
        """The rows that this piece completes, beginning with its `offset`-th token."""
        self.offset = offset
        return self._packed(piece) if self.packing == "pack" else self._truncated(piece)

    def _packed(self, piece: Piece) -> Iterator[Row]:
        lane = self._lane(piece.lane)
        n_ids = len(piece.ids)
        if piece.number == 0 and self.offset == 0 and n_ids and lane.filled:
            lane.put(self.bos_token_id, piece.document)
            if lane.filled == self.context:
                yield self._finished(lane, piece)
        while self.offset < n_ids:
            if not lane.filled:
                lane.put(self.bos_token_id, piece.document)
            n = min(self.context - lane.filled, n_ids - self.offset)
            lane.put(piece.ids[self.offset : self.offset + n], piece.document, n)
            self.offset += n
            if lane.filled == self.context:
                yield self._finished(lane, piece)

    def _truncated(self, piece: Piece) -> Iterator[Row]:
        if piece.number or self.offset:
            return
        self.offset = len(piece.ids)
        if self.offset + 1 < self.min_tokens:
            self.short += 1
            return
        lane = self._lane(piece.lane)
        n = min(self.offset, self.context - 1)
        lane.put(self.bos_token_id, piece.document)
        lane.put(piece.ids[:n], piece.document, n)
        lane.tokens_T[n + 1 :] = self.pad_token_id
        lane.document_T[n + 1 :] = PADDING
        yield self._finished(lane, piece)

    def _lane(self, lane: tuple[int, int]) -> _Lane:
        return self._lanes.setdefault(lane, _Lane(self.context))

    @staticmethod
    def _finished(lane: _Lane, piece: Piece) -> Row:
        lane.filled = 0
        return Row(lane.tokens_T, lane.document_T, piece.lane)

    def state(self) -> dict[str, Any]:
        """Unfinished rows (compressed, 2 to 4 bytes a token), offset and count, for JSON."""
        lanes = {}
        for (split, domain), lane in sorted(self._lanes.items()):
            content = np.stack([lane.tokens_T[: lane.filled], lane.document_T[: lane.filled]]).astype("<i4").tobytes()
            lanes[f"{split} {domain}"] = base64.b64encode(zlib.compress(content)).decode()
        return {"offset": self.offset, "short": self.short, "lanes": lanes}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.offset, self.short, self._lanes = state["offset"], state["short"], {}
        for name, text in state["lanes"].items():
            split, domain = map(int, name.split())
            content = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4").reshape(2, -1)
            lane = self._lane((split, domain))
            lane.filled = content.shape[1]
            lane.tokens_T[: lane.filled], lane.document_T[: lane.filled] = content
