"""The words whose first letters the miniature knows: each is one token of its tokenizer (with a leading space).

Absorption is measured on single-token words (Chanin et al. 2024, arXiv:2409.14507). A model can only know how a token
is spelled if its training text says so, therefore:
- TRAIN_WORDS appear in the training text in first-letter prompts and spelled out letter by letter;
- HELD_OUT_WORDS appear there only spelled out: their first letter in a prompt has to be inferred.
"""

_BY_LETTER = """
apple arrow angel anchor autumn artist animal answer arm ash army actor acid album alley amber ankle aunt
bread brick bridge bottle beach bird boat book bell bone box branch brush bucket bus butter button barn basket
cat castle candle carpet cloud coin copper cottage cotton crown cup curtain chair cheese clock coat corn crab
dog desk door dream dress drum duck dust daisy dance danger deer dinner doctor dragon drawer diamond dove
eagle earth east echo edge egg elbow elder engine evening exam eye elk empire enemy error exit event
farm father feather fence field finger fire fish flag flame flower fog forest fox frog fruit fur fork
garden gate ghost giant glass glove goat gold goose grain grape grass ground guest gift garlic gun gear
hammer hand harbor hat hawk heart hill honey hook horse hotel house hunter hen helmet herb hour hat hall
ice idea image inch infant ink insect iron island ivory ivy item insult inn issue
jacket jar jelly jewel job joke journey judge juice jungle jury jam jet jaw june
kettle key king kitchen kite knee knife knight knot kid kidney kingdom kiss kit
ladder lake lamb lamp land leaf leather lemon letter light lion lip lock log luck lunch lawn lady
map market mask meadow metal milk mirror monk moon mother mountain mouse mouth mud music magic mill mint
nail name neck needle nephew nest net night noise north nose note number nut noon nerve news
oak oar ocean office oil olive onion orange orchard oven owl ox oyster opera order organ
paint palace paper parrot path pearl pencil pepper piano pillow pine pipe planet plate poet potato prince pony
quail quarter queen quiet quilt quiz quarry quest question queue
rabbit radio rain ring river road robin rock roof room root rope rose ruby rug ruler rice ribbon
saddle sail salt sand school seed shadow sheep ship shirt silver smoke snow soap soldier spoon star stone sugar
table tail tea temple tent thread throat tiger toast tooth tower town tree truck tulip turtle tray thumb
umbrella uncle uniform union unit urn user utensil upstairs usher unicorn
valley vase veil velvet vessel village vine violin voice valve van vapor vest victor view vote visit
wagon wall water wave wax weather wheel whale wheat whisper window wine winter wolf wood wool worm wrist
xenon xylem xerox xray
yacht yard yarn year yeast yellow yolk youth yak yam yawn yoke
zebra zero zinc zipper zone zoo zeal zebu
"""

WORDS: tuple[str, ...] = tuple(dict.fromkeys(_BY_LETTER.split()))
"""About 400 lower-case words, every letter of the alphabet present."""

HELD_OUT_WORDS: tuple[str, ...] = WORDS[5::10]
"""Every tenth word: never the question of a first-letter prompt in the training text."""

TRAIN_WORDS: tuple[str, ...] = tuple(word for word in WORDS if word not in set(HELD_OUT_WORDS))
"""The words that first-letter prompts of the training text ask about."""


def first_letter(word: str) -> str:
    """The upper-case first letter: the answer of a first-letter prompt."""
    return word[0].upper()
