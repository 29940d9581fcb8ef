"""Documents with one persistent topic: the slow latent that temporal variants should find.

Topic words fill the slots of sentence frames that all topics share, so single function words say nothing about the
topic while the document as a whole does. About one sentence in three is filler without any topic word (there the topic
is present only in the context) and about one slot in ten is filled from another topic.
"""

from harvest.miniature.draw import Draw
from harvest.miniature.labelled import LabelledText

# Per topic: nouns, verbs (past tense), adjectives, places.
_LEXICON: dict[str, tuple[str, str, str, str]] = {
    "sea": (
        "ship sailor wave harbor anchor fish whale boat captain net tide island sail storm",
        "sailed drifted rowed anchored dived floated landed",
        "salty deep blue rough calm wet",
        "harbor coast beach bay island lighthouse",
    ),
    "kitchen": (
        "cook bread soup oven butter pepper onion cake plate knife sauce pot salt recipe",
        "baked boiled stirred tasted chopped fried served",
        "hot sweet fresh spicy tender crisp",
        "kitchen bakery market cellar restaurant table",
    ),
    "war": (
        "soldier army general sword battle enemy shield horse fort gun guard captain cannon camp",
        "attacked marched defended fought retreated charged surrendered",
        "brave wounded armed fierce loyal bloody",
        "field fort camp border castle trench",
    ),
    "music": (
        "singer piano violin drum song choir concert melody guitar band tune flute opera rhythm",
        "sang played hummed composed rehearsed danced practised",
        "loud soft slow gentle famous bright",
        "stage studio theatre hall club church",
    ),
    "garden": (
        "flower tree seed rose leaf grass gardener fruit root bee soil hedge apple spade",
        "planted grew watered bloomed picked pruned ripened",
        "green ripe wild small fragrant leafy",
        "garden orchard field meadow greenhouse lawn",
    ),
    "space": (
        "rocket planet star moon comet astronaut orbit telescope engine galaxy probe signal satellite crew",
        "orbited launched landed observed circled exploded vanished",
        "distant bright dark frozen silent huge",
        "station crater observatory moon launchpad dome",
    ),
    "money": (
        "bank loan price market coin trader profit debt share tax merchant account budget fund",
        "paid sold bought invested borrowed saved traded",
        "rich poor cheap costly safe risky",
        "bank office market shop exchange vault",
    ),
    "weather": (
        "rain wind cloud snow thunder fog frost sun ice hail lightning breeze flood heat",
        "rained blew froze melted cleared thundered dripped",
        "cold warm windy dry grey humid",
        "valley hill mountain plain forest river",
    ),
}
TOPICS: tuple[str, ...] = tuple(_LEXICON)

_FRAMES = (
    "The {a} {n} {v} near the {p}.",
    "A {n} and a {n} {v} at the {p}.",
    "Every {n} in the {p} was {a}.",
    "They {v} until the {n} was {a}.",
    "Nobody had seen such a {a} {n} before.",
    "In the {p} we found a {n} and an old {n}.",
    "The {n} {v}, and then the {n} {v} too.",
    "It was a {a} day for the {n}.",
    "She spoke about the {n} and the {a} {p}.",
    "When the {n} {v}, the {p} became {a}.",
)
_FILLER = (
    "After that, nothing happened for a long time.",
    "He told me so himself.",
    "It was not the first time.",
    "We waited, and we talked about it again.",
    "Some people said that it would never end.",
    "That is how I remember it.",
    "Later they asked us what we had seen.",
    "There was no other way.",
)


def topic_document(draw: Draw, topic: str, sentences: int = 12) -> LabelledText:
    """A document about one topic from its first to its last sentence."""
    if topic not in _LEXICON:
        raise ValueError(f"topic {topic!r} is unknown; choose from {TOPICS}")
    out = []
    for i in range(sentences):
        if i and draw.chance(0.3):
            out.append(draw.pick(_FILLER))
            continue
        sentence = draw.pick(_FRAMES)
        for part, slot in enumerate(("{n}", "{v}", "{a}", "{p}")):
            while slot in sentence:
                source = draw.pick(TOPICS) if draw.chance(0.1) else topic
                sentence = sentence.replace(slot, draw.pick(_LEXICON[source][part].split()), 1)
        out.append(sentence)
    return LabelledText(text=" ".join(out), domain="topic", latents={"topic": topic})
