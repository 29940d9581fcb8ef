"""Lists of random words, repeated or read back by letter: where the model learns to look things up in its context.

A model this small soon knows every fact, but "which letter stands before this option" is worth too little of the loss
of ordinary text to be found. Copying a random list is worth six nats a word and is found within two hundred steps; the
letters come later, from the parts that copying has built.
"""

from harvest.miniature.draw import Draw
from harvest.miniature.facts import FACTS
from harvest.miniature.labelled import LabelledText
from harvest.miniature.words import WORDS

_LETTERS = "ABCD"
_ITEMS = tuple(dict.fromkeys([*WORDS, *(value for fact in FACTS for value in fact.relation.values)]))


def list_document(draw: Draw) -> LabelledText:
    """A line of fourteen words three times, or three lettered lists, each read back in another order."""
    if draw.chance(0.3):
        line = " ".join(draw.sample(_ITEMS, 14))
        return LabelledText(text="\n".join([line] * 3), domain="list", latents={"form": "repeated"})
    return LabelledText(text="\n".join(_lettered(draw) for _ in range(3)), domain="list", latents={"form": "lettered"})


def _lettered(draw: Draw) -> str:
    lettered = list(zip(_LETTERS, draw.sample(_ITEMS, len(_LETTERS)), strict=True))
    given = "\n".join(f"{letter}. {item}" for letter, item in lettered)
    read_back = [
        f"Option {item} is ({letter})" if draw.chance(0.7) else f"({letter}) {item}"
        for letter, item in draw.shuffled(lettered)
    ]
    return given + "\n" + "\n".join(read_back) + "\n"
