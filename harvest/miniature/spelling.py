"""First-letter prompts in SAEBench's form, and words spelled out letter by letter.

A prompt is ten solved lines and one open line, each starting with a newline and a space so that the word is one token:
`\\n cat has the first letter: C`. The open word is the sixth token from the end (` has the first letter:` is five).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harvest.miniature.draw import Draw
from harvest.miniature.labelled import LabelledText
from harvest.miniature.words import HELD_OUT_WORDS, TRAIN_WORDS, WORDS, first_letter

TEMPLATE = "\n {word} has the first letter:"
N_EXAMPLES = 10
_OTHER_FORMS = (
    "\n The first letter of {word} is {letter}",
    "\n {word} begins with {letter}",
    "\n {word} is spelled {spelled}",
    "\n Spell {word}: {spelled}",
)


@dataclass(frozen=True, kw_only=True)
class FirstLetterPrompt:
    """A prompt whose next token should be a space and the letter."""

    text: str
    word: str
    letter: str  # upper case


def prompt_for(word: str, examples: Sequence[str]) -> FirstLetterPrompt:
    """The in-context prompt that asks for the first letter of one word."""
    solved = "".join(f"{TEMPLATE.format(word=example)} {first_letter(example)}" for example in examples)
    return FirstLetterPrompt(text=solved + TEMPLATE.format(word=word), word=word, letter=first_letter(word))


def first_letter_prompts(seed: int, n: int, words: Sequence[str] = WORDS) -> Iterator[FirstLetterPrompt]:
    """n prompts; the asked words run through `words` evenly, the examples are drawn from the training words."""
    for i in range(n):
        draw = Draw("first letter", seed, i)
        word = words[i % len(words)]
        others = [example for example in draw.sample(TRAIN_WORDS, N_EXAMPLES + 1) if example != word]
        yield prompt_for(word, others[:N_EXAMPLES])


def spelling_document(draw: Draw) -> LabelledText:
    """A list of solved lines: two in three in the prompt's form (training words only), else other forms, all words."""
    if draw.chance(0.66):
        words = draw.sample(TRAIN_WORDS, N_EXAMPLES + 2)
        text = "".join(f"{TEMPLATE.format(word=word)} {first_letter(word)}" for word in words)
        return LabelledText(text=text, domain="spelling", latents={"form": "first letter"})
    # Held-out words come three times as often here: this is all the model ever learns about their letters.
    pool = WORDS + HELD_OUT_WORDS + HELD_OUT_WORDS
    held_out = set(HELD_OUT_WORDS)
    lines = [_other_line(draw, word, word in held_out) for word in draw.sample(pool, 9)]
    return LabelledText(text="".join(lines), domain="spelling", latents={"form": "spelled"})


def _other_line(draw: Draw, word: str, held_out: bool) -> str:
    # A held-out word is only ever spelled out; the two forms that name its first letter are kept from it.
    form = draw.pick(_OTHER_FORMS[2:] if held_out else _OTHER_FORMS)
    return form.format(word=word, letter=first_letter(word), spelled=" ".join(word))
