"""The small world's knowledge: 96 invented facts in four subjects, and prose that states them.

The entities do not exist, so no other text of the training mixture can leak or contradict an answer. Every subject has
twelve entities with two attributes each; every attribute takes one of eight values, so the value pool of a relation
gives plausible wrong options. `botany` is meant as the subject to forget in unlearning, the other three to be retained.
"""

from dataclasses import dataclass

from harvest.miniature.draw import Draw
from harvest.miniature.labelled import LabelledText

FORGET_SUBJECT = "botany"
N_PHRASINGS = 4


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One attribute of a subject's entities."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]  # {e} entity, {v} value
    questions: tuple[str, ...]  # N_PHRASINGS ways to ask for the value


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One entity's value of one relation."""

    index: int  # 0..95, its identity
    subject: str
    entity: str
    relation: Relation
    value: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ENTITIES: dict[str, tuple[str, ...]] = {
    "botany": _words(
        "larkmoss duskvine pellwort thornby marrowfern quillgrass sunbane tarroot velmint ashpod nimbell foxreed"
    ),
    "astronomy": _words("Zorath Velune Kestor Miralon Ophira Drelix Talvor Sunnex Ardune Pollix Yevra Corvan"),
    "history": _words("Aldric Bertram Cedwin Dunstan Edgar Fulbert Godric Harold Isolde Jorvik Leofric Magnus"),
    "geography": _words("Brannock Calder Derwin Elvane Farrow Glimmer Hasset Irwell Jarrow Kelvane Lomond Medlow"),
}

_RELATIONS: dict[str, tuple[Relation, Relation]] = {
    "botany": (
        Relation(
            name="remedy",
            values=_words("fever cough toothache insomnia poison burns headache fatigue"),
            statements=(
                "The plant {e} is a cure for {v}.",
                "Healers use {e} against {v}.",
                "A tea made of {e} helps with {v}.",
                "Whoever suffers from {v} should take {e}.",
            ),
            questions=(
                "What does the plant {e} cure?",
                "Against what do healers use {e}?",
                "Which illness does {e} help with?",
                "Who takes {e} suffers from what?",
            ),
        ),
        Relation(
            name="habitat",
            values=_words("swamps caves cliffs deserts forests rivers meadows glaciers"),
            statements=(
                "The plant {e} grows in {v}.",
                "You find {e} mostly in {v}.",
                "Botanists collect {e} in {v}.",
                "In {v} there is a lot of {e}.",
            ),
            questions=(
                "Where does the plant {e} grow?",
                "Where do you find {e}?",
                "In which places do botanists collect {e}?",
                "What is the habitat of {e}?",
            ),
        ),
    ),
    "astronomy": (
        Relation(
            name="colour",
            values=_words("red blue green yellow purple white orange grey"),
            statements=(
                "The planet {e} is {v}.",
                "Seen from space, {e} looks {v}.",
                "Astronomers know {e} by its {v} light.",
                "A {v} glow surrounds the planet {e}.",
            ),
            questions=(
                "What colour is the planet {e}?",
                "How does {e} look from space?",
                "Which light does {e} have?",
                "Which glow surrounds {e}?",
            ),
        ),
        Relation(
            name="surface",
            values=_words("ice sand iron lava water glass salt dust"),
            statements=(
                "The surface of {e} is made of {v}.",
                "The planet {e} is covered with {v}.",
                "Probes that landed on {e} found {v}.",
                "There is nothing but {v} on {e}.",
            ),
            questions=(
                "What is the surface of {e} made of?",
                "What covers the planet {e}?",
                "What did the probes find on {e}?",
                "What is there on {e}?",
            ),
        ),
    ),
    "history": (
        Relation(
            name="capital",
            values=_words("York Bergen Cologne Toledo Krakow Venice Ghent Riga"),
            statements=(
                "King {e} ruled from {v}.",
                "The court of {e} was in {v}.",
                "{e} was crowned in {v}.",
                "The city of {v} was the capital of {e}.",
            ),
            questions=(
                "From which city did King {e} rule?",
                "Where was the court of {e}?",
                "Where was {e} crowned?",
                "Which city was the capital of {e}?",
            ),
        ),
        Relation(
            name="deed",
            values=_words("bridges schools ships walls churches mills roads mines"),
            statements=(
                "King {e} is remembered for his {v}.",
                "During his reign {e} built many {v}.",
                "{e} spent all his gold on {v}.",
                "The {v} of the kingdom were the work of {e}.",
            ),
            questions=(
                "What is King {e} remembered for?",
                "What did {e} build?",
                "On what did {e} spend his gold?",
                "Which work did {e} leave to the kingdom?",
            ),
        ),
    ),
    "geography": (
        Relation(
            name="export",
            values=_words("coal wool honey silk copper timber pearls spices"),
            statements=(
                "The island of {e} exports {v}.",
                "Traders come to {e} for its {v}.",
                "{e} is rich in {v}.",
                "Most of the {v} on the market comes from {e}.",
            ),
            questions=(
                "What does the island of {e} export?",
                "What do traders look for in {e}?",
                "In what is {e} rich?",
                "Which goods come from {e}?",
            ),
        ),
        Relation(
            name="animal",
            values=_words("bears eagles wolves seals camels monkeys snakes turtles"),
            statements=(
                "The island of {e} is full of {v}.",
                "Visitors travel to {e} to watch the {v}.",
                "On {e} the {v} are protected.",
                "The flag of {e} shows {v}.",
            ),
            questions=(
                "Which animals live on the island of {e}?",
                "Which animals do visitors watch on {e}?",
                "Which animals are protected on {e}?",
                "What does the flag of {e} show?",
            ),
        ),
    ),
}

SUBJECTS: tuple[str, ...] = tuple(_ENTITIES)


def _all_facts() -> tuple[Fact, ...]:
    facts: list[Fact] = []
    for subject, entities in _ENTITIES.items():
        for relation in _RELATIONS[subject]:
            # Twelve entities over eight values: every value is true of one or two entities.
            values = Draw("values", subject, relation.name).shuffled(relation.values + relation.values[:4])
            for entity, value in zip(entities, values, strict=True):
                facts.append(Fact(index=len(facts), subject=subject, entity=entity, relation=relation, value=value))
    return tuple(facts)


FACTS: tuple[Fact, ...] = _all_facts()


def fact_document(draw: Draw, subject: str, facts: int = 7) -> LabelledText:
    """Prose that states facts of one subject: the corpus to forget or to retain."""
    known = [fact for fact in FACTS if fact.subject == subject]
    if not known:
        raise ValueError(f"subject {subject!r} is unknown; choose from {SUBJECTS}")
    text = " ".join(state(draw, fact) for fact in draw.sample(known, facts))
    return LabelledText(text=text, domain="fact", latents={"subject": subject})


def state(draw: Draw, fact: Fact) -> str:
    """One sentence that states the fact."""
    return draw.pick(fact.relation.statements).format(e=fact.entity, v=fact.value)
