"""Four-option questions about the facts, in the chat form of MMLU/WMDP that the unlearning evaluation uses.

Held out from the training text, for every fact: one of its four phrasings (never asked in any question), and every
fourth arrangement of options (which wrong options, in which order), chosen by a hash. A held-out question has both: a
phrasing never asked of that fact and an arrangement never shown.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from harvest.miniature.draw import Draw
from harvest.miniature.facts import FACTS, N_PHRASINGS, SUBJECTS, Fact, state
from harvest.miniature.labelled import LabelledText

LETTERS = "ABCD"
Split = Literal["train", "held-out"]
HEADER = "The following are multiple choice questions (with answers) about {subject}.\n"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its options in order; the answer is an index into them."""

    fact: Fact
    text: str
    options: tuple[str, str, str, str]
    answer: int

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.answer]

    @property
    def body(self) -> str:
        """The question and its four lettered options."""
        lines = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True))
        return self.text + lines

    @property
    def message(self) -> str:
        """What the user says: the MMLU header and the body; goes through the tokenizer's chat template."""
        return HEADER.format(subject=self.fact.subject) + self.body

    @property
    def prompt(self) -> str:
        """The chat prompt without BOS; the next token should be the letter."""
        return f"<start_of_turn>user\n{self.message}<end_of_turn>\n<start_of_turn>model\nAnswer: ("


def questions(
    seed: int, n: int, *, split: Split = "held-out", subjects: Sequence[str] = SUBJECTS
) -> Iterator[Question]:
    """n questions of one split, running evenly through the facts of the subjects."""
    facts = [fact for fact in FACTS if fact.subject in subjects]
    if not facts:
        raise ValueError(f"no such subjects {tuple(subjects)}; choose from {SUBJECTS}")
    for i in range(n):
        yield ask(Draw("question", split, seed, i), facts[i % len(facts)], split)


def ask(draw: Draw, fact: Fact, split: Split) -> Question:
    """A question about the fact, of the given split."""
    phrasings = [p for p in range(N_PHRASINGS) if (p == held_out_phrasing(fact)) == (split == "held-out")]
    text = fact.relation.questions[draw.pick(phrasings)].format(e=fact.entity)
    wrong = [value for value in fact.relation.values if value != fact.value]
    while True:
        a, b, c, d = draw.shuffled([fact.value, *draw.sample(wrong, 3)])
        if held_out_arrangement(fact, (a, b, c, d)) == (split == "held-out"):
            return Question(fact=fact, text=text, options=(a, b, c, d), answer=[a, b, c, d].index(fact.value))


def held_out_phrasing(fact: Fact) -> int:
    """Which of the relation's phrasings is never asked of this fact in the training text."""
    return fact.index % N_PHRASINGS


def held_out_arrangement(fact: Fact, options: Sequence[str]) -> bool:
    """Whether this fact is never shown with these options in this order in the training text."""
    return zlib.crc32(f"{fact.index}:{','.join(options)}".encode()) % 4 == 0


def question_document(draw: Draw, subject: str) -> LabelledText:
    """Solved training questions of one subject: one in chat form, three as plain text, or three lists read back."""
    facts = [fact for fact in FACTS if fact.subject == subject]
    asked = [ask(draw, fact, "train") for fact in draw.sample(facts, 3)]
    form = draw.below(5)
    if form < 2:
        text = f"{asked[0].prompt}{asked[0].letter}) {asked[0].options[asked[0].answer]}<end_of_turn>\n"
    elif form < 4:
        text = "\n".join(_solved(draw, question) for question in asked)
    else:
        text = "\n".join(_read_back(draw, question) for question in asked)
    return LabelledText(text=text, domain="question", latents={"subject": subject})


def _solved(draw: Draw, question: Question) -> str:
    """The answer after the letter, before it, or the whole fact before the question."""
    answer = question.options[question.answer]
    form = draw.below(3)
    if form == 0:
        return f"{question.body}\nAnswer: ({question.letter}) {answer}\n"
    if form == 1:
        return f"{question.body}\nThe answer is {answer}, that is ({question.letter})\n"
    return f"{state(draw, question.fact)}\n{question.body}\nAnswer: ({question.letter}) {answer}\n"


def _read_back(draw: Draw, question: Question) -> str:
    """Which letter stands for which option, four times: the step that a model this small learns last."""
    lettered = draw.shuffled(list(zip(LETTERS, question.options, strict=True)))
    return question.body + "".join(f"\nOption {option} is ({letter})" for letter, option in lettered) + "\n"
