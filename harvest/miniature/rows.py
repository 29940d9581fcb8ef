"""Training rows: documents laid into rows of T tokens so that a question is rarely cut in two.

A row is BOS, document, BOS, document, …; every document starts with the BOS that the tokenizer prepends. Where no
waiting document fits into the rest of a row, one is cut and its end dropped. There is no padding.
Shapes: N rows, T tokens a row.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from harvest.miniature.labelled import LabelledText

POOL = 64  # documents that wait for a gap they fit into


def pack(tokenizer: PreTrainedTokenizerBase, texts: Iterable[LabelledText], length: int) -> Iterator[NDArray[np.int32]]:
    """Rows of `length` token ids, until the documents run out."""
    waiting: list[list[int]] = []
    source = iter(texts)
    row: list[int] = []
    while True:
        while len(waiting) < POOL and (text := next(source, None)) is not None:
            waiting.append(tokenizer(text.text).input_ids)
        if not waiting:
            return
        space = length - len(row)
        fitting = next((i for i, ids in enumerate(waiting) if len(ids) <= space), 0)
        row += waiting.pop(fitting)[:space]
        if len(row) == length:
            yield np.array(row, dtype=np.int32)
            row = []
