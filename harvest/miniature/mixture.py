"""The mixture: document i of a seed is a pure function of (seed, i), so any part of the stream can be read directly."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product

from harvest.miniature.bios import GENDERS, PROFESSIONS, bio_document
from harvest.miniature.draw import Draw
from harvest.miniature.facts import SUBJECTS, fact_document
from harvest.miniature.labelled import LabelledText
from harvest.miniature.lists import list_document
from harvest.miniature.multiple_choice import question_document
from harvest.miniature.prose import held_out_paragraphs, training_paragraphs
from harvest.miniature.reviews import PRODUCTS, SENTIMENTS, review_document
from harvest.miniature.spelling import spelling_document
from harvest.miniature.topics import TOPICS, topic_document

TRAINING_SEED = 0
"""The seed of the shipped model's training text: other seeds are unseen text."""

_WRITERS: dict[str, Callable[[Draw], LabelledText]] = {
    "topic": lambda draw: topic_document(draw, draw.pick(TOPICS)),
    "bio": lambda draw: bio_document(draw, draw.pick(PROFESSIONS), draw.pick(GENDERS), titled=draw.chance(0.5)),
    "review": lambda draw: review_document(draw, draw.pick(PRODUCTS), draw.pick(SENTIMENTS)),
    "fact": lambda draw: fact_document(draw, draw.pick(SUBJECTS)),
    "question": lambda draw: question_document(draw, draw.pick(SUBJECTS)),
    "spelling": spelling_document,
    "list": list_document,
}
SYNTHETIC_DOMAINS: tuple[str, ...] = tuple(_WRITERS)
DOMAINS: tuple[str, ...] = (*SYNTHETIC_DOMAINS, "prose")

_WEIGHTS = {"topic": 9, "bio": 10, "review": 11, "fact": 9, "question": 30, "spelling": 13, "list": 18}
PROSE_SHARE = 0.2

# kind -> the factors it balances, each with its values.
_FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "topic": {"topic": TOPICS},
    "bio": {"profession": PROFESSIONS, "gender": GENDERS},
    "review": {"product": PRODUCTS, "sentiment": SENTIMENTS},
    "fact": {"subject": SUBJECTS},
}
_BALANCED: dict[str, Callable[..., LabelledText]] = {
    "topic": topic_document,
    "bio": bio_document,
    "review": review_document,
    "fact": fact_document,
}
KINDS: tuple[str, ...] = tuple(_FACTORS)


def documents(
    seed: int,
    n: int,
    *,
    start: int = 0,
    domains: Sequence[str] = SYNTHETIC_DOMAINS,
    prose_share: float = PROSE_SHARE,
    held_out_prose: bool = False,
) -> Iterator[LabelledText]:
    """Documents start .. start + n - 1 of the mixture of prose and the given synthetic domains.

    With `prose_share=0.0` the text is the same on every Python; prose comes from the running Python's documentation.
    """
    for index in range(start, start + n):
        yield document(seed, index, domains=domains, prose_share=prose_share, held_out_prose=held_out_prose)


def document(
    seed: int,
    index: int,
    *,
    domains: Sequence[str] = SYNTHETIC_DOMAINS,
    prose_share: float = PROSE_SHARE,
    held_out_prose: bool = False,
) -> LabelledText:
    """One document of the mixture."""
    draw = Draw("document", seed, index)
    if draw.chance(prose_share):
        source = held_out_paragraphs() if held_out_prose else training_paragraphs()
        return LabelledText(text=draw.pick(source), domain="prose", latents={})
    return _WRITERS[draw.pick(_tickets(tuple(domains)))](draw)


@cache
def _tickets(domains: tuple[str, ...]) -> tuple[str, ...]:
    """Every domain as often as its weight says."""
    unknown = set(domains) - set(_WRITERS)
    if unknown or not domains:
        raise ValueError(f"need domains out of {SYNTHETIC_DOMAINS}, got {domains}")
    return tuple(domain for domain in domains for _ in range(_WEIGHTS[domain]))


def labelled_texts(kind: str, seed: int, n: int) -> Iterator[LabelledText]:
    """n texts of one kind with every combination of its latents equally often (for probes, SCR, TPP, unlearning)."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose from {KINDS}")
    names = tuple(_FACTORS[kind])
    combinations = list(product(*_FACTORS[kind].values()))
    for i in range(n):
        values = dict(zip(names, combinations[i % len(combinations)], strict=True))
        yield _BALANCED[kind](Draw("labelled", kind, seed, i), **values)
