"""What the miniature reads, in which order: the mixture, a drill in looking things up, the mixture again.

The mixture alone, at this size, leaves multiple choice at chance: the model knows every fact after a thousand steps but
not which letter stands before an option. Drilled on questions and lists, with those letters counted more, it finds the
look-up abruptly, and the second reading of the mixture keeps it. Spelling is drilled too, and its letters count more:
left out, first letters were forgotten in the drill and came back to 0.937 only.
Shapes: N rows of T tokens.
"""

from collections.abc import Iterator
from itertools import islice
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from harvest.miniature.mixture import PROSE_SHARE, SYNTHETIC_DOMAINS, TRAINING_SEED, documents
from harvest.miniature.multiple_choice import LETTERS
from harvest.miniature.recipe import Recipe
from harvest.miniature.rows import pack

_DRILL = ("question", "list", "spelling")
_APART = 10_000_000  # documents between the starts of two phases, so that none is read twice


def training_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[NDArray[np.int32]]:
    """Every row of the training, in order: recipe.steps * recipe.rows_per_step of them."""
    phases = (
        (recipe.reading_steps, SYNTHETIC_DOMAINS, PROSE_SHARE),
        (recipe.drill_steps, _DRILL, 0.0),
        (recipe.rereading_steps, SYNTHETIC_DOMAINS, PROSE_SHARE),
    )
    for phase, (steps, domains, prose_share) in enumerate(phases):
        texts = documents(TRAINING_SEED, _APART, start=phase * _APART, domains=domains, prose_share=prose_share)
        yield from islice(pack(tokenizer, texts, recipe.row_length), steps * recipe.rows_per_step)


class LetterWeights:
    """Loss weights: a letter A-D after ` (` and a first letter after `:` count more, everything else once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
        self._answers = (
            (self._id(tokenizer, " ("), [self._id(tokenizer, x) for x in LETTERS], recipe.letter_weight),
            (self._id(tokenizer, ":"), [self._id(tokenizer, f" {x}") for x in ascii_uppercase], recipe.spelling_weight),
        )

    def of(self, rows_NT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights of the predicted tokens, [N, T - 1]."""
        weights = np.ones_like(rows_NT[:, 1:], dtype=np.float32)
        for before, letters, weight in self._answers:
            weights[(rows_NT[:, :-1] == before) & np.isin(rows_NT[:, 1:], letters)] = weight
        return weights

    @staticmethod
    def _id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
        return int(tokenizer(text, add_special_tokens=False).input_ids[-1])
