"""Product reviews: product x sentiment, the second pair of factors of SCR and the product classes of TPP.

The product shows in its parts and uses and, in two of three reviews, in its name; the sentiment in verdicts and
outcomes. Every other review also names another product and judges it the other way, so that counting words is not
enough. The two factors are independent. The pairs mirror SAEBench's use of Amazon categories.
"""

from harvest.miniature.draw import Draw
from harvest.miniature.labelled import LabelledText

PRODUCT_PAIRS: tuple[tuple[str, str], ...] = (
    ("book", "guitar"),
    ("phone", "blender"),
    ("tent", "keyboard"),
    ("toy", "lamp"),
)
PRODUCTS: tuple[str, ...] = tuple(name for pair in PRODUCT_PAIRS for name in pair)
SENTIMENTS: tuple[str, ...] = ("positive", "negative")

# Per product: names, parts and uses.
_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "book": (("book", "novel"), ("plot", "chapters", "cover", "characters"), ("read it on the train", "read it twice")),
    "guitar": (("guitar", "instrument"), ("strings", "neck", "sound", "tuning pegs"), ("play chords on it", "tune it")),
    "phone": (("phone", "mobile"), ("screen", "battery", "camera", "charger"), ("call my family", "send messages")),
    "blender": (("blender", "mixer"), ("blades", "jug", "motor", "lid"), ("make smoothies", "crush ice")),
    "tent": (("tent", "shelter"), ("poles", "pegs", "zipper", "canvas"), ("camp by the lake", "sleep outdoors")),
    "keyboard": (("keyboard", "keypad"), ("keys", "cable", "space bar", "layout"), ("type letters", "write code")),
    "toy": (("toy", "puppet"), ("wheels", "stickers", "pieces", "remote control"), ("give it to my son", "play games")),
    "lamp": (("lamp", "light"), ("bulb", "switch", "shade", "stand"), ("light the bedroom", "read at night")),
}
_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "positive": ("excellent", "wonderful", "great", "perfect", "lovely", "superb", "solid", "delightful"),
    "negative": ("terrible", "awful", "poor", "useless", "flimsy", "horrible", "faulty", "disappointing"),
}
_VERDICTS: dict[str, tuple[str, ...]] = {
    "positive": (
        "I am very happy with it.",
        "I would buy it again at once.",
        "It was worth every cent.",
        "Five stars from me.",
        "I recommend it to everyone.",
        "It made my whole week.",
    ),
    "negative": (
        "I want my money back.",
        "It broke after two days.",
        "I regret buying it.",
        "One star is too much.",
        "Do not waste your money.",
        "I sent it back the same week.",
    ),
}
_NEUTRAL = (
    "I bought it last month.",
    "The parcel came on a Monday.",
    "My sister has the same one.",
    "I ordered it online.",
    "It came in a plain box.",
)
_FRAMES = (
    "The {part} and the {part} are {adjective}.",
    "What {adjective} {part}!",
    "I use it to {use}, and it is {adjective} for that.",
    "The {part}: {adjective}.",
    "We tried to {use} and it was {adjective}.",
)
_COMPARISONS = (
    "My old {other} was {contrary}.",
    "Before that I had a {contrary} {other}.",
    "My neighbour has a {contrary} {other}.",
)
_NAMED = ("This {name} is {adjective}.", "A truly {adjective} {name}.", "I needed a new {name}.")


def review_document(draw: Draw, product: str, sentiment: str) -> LabelledText:
    """One review of a product; only a comparison with another product judges with the other sign."""
    if product not in PRODUCTS or sentiment not in SENTIMENTS:
        raise ValueError(f"need a product of {PRODUCTS} and a sentiment of {SENTIMENTS}, got {product}, {sentiment}")
    frames = [draw.pick(_NEUTRAL), *draw.sample(_FRAMES, 3), draw.pick(_VERDICTS[sentiment])]
    if draw.chance(0.66):
        frames.insert(draw.below(2), draw.pick(_NAMED))
    if draw.chance(0.5):
        frames.insert(draw.below(len(frames)), draw.pick(_COMPARISONS))
    text = " ".join(_fill(draw, frame, product, sentiment) for frame in frames)
    return LabelledText(text=text, domain="review", latents={"product": product, "sentiment": sentiment})


def _fill(draw: Draw, frame: str, product: str, sentiment: str) -> str:
    names, parts, uses = _PARTS[product]
    for part in draw.sample(parts, 2):
        frame = frame.replace("{part}", part, 1)
    return frame.format(
        name=draw.pick(names),
        adjective=draw.pick(_ADJECTIVES[sentiment]),
        use=draw.pick(uses),
        other=draw.pick([other for other in PRODUCTS if other != product]),
        contrary=draw.pick(_ADJECTIVES[SENTIMENTS[1 - SENTIMENTS.index(sentiment)]]),
    )
