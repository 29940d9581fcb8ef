"""Short biographies: profession x gender, the two factors of spurious-correlation removal.

The eight professions form the four pairs that SAEBench takes from Bias in Bios (De-Arteaga et al. 2019). As in that
data set's `hard_text`, a labelled biography never names the profession: it has to be read off duties, tools and places.
Gender shows in the first name, the pronouns and one family word. Every other biography also mentions somebody else, of
any gender and another profession, so that counting words is not enough. The two factors are independent.
"""

from harvest.miniature.draw import Draw
from harvest.miniature.labelled import LabelledText

PROFESSION_PAIRS: tuple[tuple[str, str], ...] = (
    ("professor", "nurse"),
    ("architect", "journalist"),
    ("surgeon", "psychologist"),
    ("attorney", "teacher"),
)
PROFESSIONS: tuple[str, ...] = tuple(name for pair in PROFESSION_PAIRS for name in pair)
GENDERS: tuple[str, ...] = ("male", "female")

# Per profession: workplaces, objects of the work, things done.
_DUTIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "professor": (
        ("the university", "the faculty", "a research institute"),
        ("lectures", "doctoral theses", "research grants", "academic papers"),
        ("gives lectures", "supervises doctoral students", "publishes research", "chairs the faculty"),
    ),
    "nurse": (
        ("the ward", "a children's clinic", "the night ward"),
        ("bandages", "temperature charts", "patient beds", "vaccines"),
        ("cares for patients", "changes bandages", "gives vaccines", "watches over the ward"),
    ),
    "architect": (
        ("a design studio", "the building site", "the planning office"),
        ("floor plans", "blueprints", "facades", "scale models"),
        ("designs houses", "draws floor plans", "plans bridges and towers", "renovates old facades"),
    ),
    "journalist": (
        ("the newsroom", "a daily newspaper", "the press office"),
        ("headlines", "interviews", "news stories", "editorials"),
        ("reports the news", "interviews politicians", "writes headlines", "covers elections"),
    ),
    "surgeon": (
        ("the operating room", "the trauma unit", "a transplant centre"),
        ("scalpels", "heart operations", "stitches", "transplants"),
        ("operates on hearts", "performs transplants", "repairs broken bones", "leads operations"),
    ),
    "psychologist": (
        ("a therapy practice", "the counselling centre", "a private practice"),
        ("therapy sessions", "anxiety disorders", "dreams and emotions", "personality tests"),
        ("listens to clients", "treats anxiety", "studies human behaviour", "leads therapy sessions"),
    ),
    "attorney": (
        ("a law firm", "the courthouse", "the legal department"),
        ("contracts", "lawsuits", "legal briefs", "appeals"),
        ("defends clients in court", "writes contracts", "argues appeals", "negotiates settlements"),
    ),
    "teacher": (
        ("a primary school", "the village school", "the classroom"),
        ("homework", "spelling lessons", "school trips", "report cards"),
        ("teaches children to read", "marks homework", "prepares lessons", "runs the school choir"),
    ),
}
_NAMES: dict[str, tuple[str, ...]] = {
    "male": ("James", "Robert", "Peter", "Daniel", "Thomas", "Henry", "Paul", "Victor", "Oscar", "Samuel"),
    "female": ("Mary", "Anna", "Helen", "Laura", "Susan", "Emma", "Clara", "Alice", "Nina", "Julia"),
}
_GRAMMAR: dict[str, dict[str, str]] = {
    "male": {"he": "he", "He": "He", "his": "his", "His": "His", "him": "him", "partner": "wife", "kin": "father"},
    "female": {
        "he": "she",
        "He": "She",
        "his": "her",
        "His": "Her",
        "him": "her",
        "partner": "husband",
        "kin": "mother",
    },
}
_CITIES = ("Boston", "Leeds", "Vienna", "Dublin", "Lisbon", "Toronto", "Oslo", "Denver")
_OPENINGS = (
    "{name} works at {place} in {city}.",
    "{name} has worked at {place} for {years} years.",
    "For {years} years {name} has been at {place} in {city}.",
)
_MIDDLE = (
    "{He} {does}.",
    "Every week {he} {does}.",
    "{His} days are full of {thing} and {thing}.",
    "{He} is known for {his} {thing}.",
    "{His} colleagues admire {him} for {his} work with {thing}.",
    "Most of all {he} likes {thing}.",
)
_CLOSINGS = (
    "{He} lives in {city} with {his} {partner}.",
    "In {his} free time {he} enjoys long walks.",
    "{He} is the {kin} of two children.",
    "{His} {partner} comes from {city}.",
)
_OTHERS = (
    "{His} neighbour {stranger} works at {elsewhere}.",
    "{His} old friend {stranger} talks about {foreign}.",
    "{stranger} from {elsewhere} is {his} best friend.",
)
_TITLES = ("{name} is a respected {title}.", "{He} became a {title} in {city}.", "As a {title}, {he} {does}.")


def bio_document(draw: Draw, profession: str, gender: str, *, titled: bool = False) -> LabelledText:
    """One biography; `titled` adds a sentence that names the profession (training text only)."""
    if profession not in PROFESSIONS or gender not in GENDERS:
        raise ValueError(f"need a profession of {PROFESSIONS} and a gender of {GENDERS}, got {profession}, {gender}")
    frames = [draw.pick(_OPENINGS), *draw.sample(_MIDDLE, 3), draw.pick(_CLOSINGS)]
    if titled:
        frames.insert(1, draw.pick(_TITLES))
    if draw.chance(0.5):
        frames.insert(1 + draw.below(len(frames)), draw.pick(_OTHERS))
    name = draw.pick(_NAMES[gender])
    text = " ".join(_fill(draw, frame, name, profession, gender) for frame in frames)
    return LabelledText(text=text, domain="bio", latents={"profession": profession, "gender": gender})


def _fill(draw: Draw, frame: str, name: str, profession: str, gender: str) -> str:
    places, things, deeds = _DUTIES[profession]
    strange_places, strange_things, _ = _DUTIES[draw.pick([other for other in PROFESSIONS if other != profession])]
    for thing in draw.shuffled(things):  # two slots of one sentence get two different things
        frame = frame.replace("{thing}", thing, 1)
    return frame.format(
        name=name,
        title=profession,
        place=draw.pick(places),
        does=draw.pick(deeds),
        city=draw.pick(_CITIES),
        years=draw.pick(("two", "three", "five", "eight", "ten", "twelve")),
        stranger=draw.pick([other for names in _NAMES.values() for other in names if other != name]),
        elsewhere=draw.pick(strange_places),
        foreign=draw.pick(strange_things),
        **_GRAMMAR[gender],
    )
