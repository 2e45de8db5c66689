"""Class names and numbers in plain English: plurals, number words, places and sizes."""

from __future__ import annotations

import re
from functools import lru_cache

# fmt: off
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on

NINTHS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the ninths of an image, by row and column."""

SIZE_STEPS = ((0.04, "tiny"), (0.10, "small"), (0.25, "medium"))
"""Upper bound of the square root of a box's share of the image → word; above the last one it is "large"."""

# fmt: off
_IRREGULAR = {
    "person": "people", "man": "men", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "louse": "lice", "ox": "oxen", "quiz": "quizzes", "stomach": "stomachs", "loch": "lochs",
    "leaf": "leaves", "wolf": "wolves", "calf": "calves", "half": "halves", "knife": "knives", "life": "lives",
    "wife": "wives", "loaf": "loaves", "shelf": "shelves", "thief": "thieves", "hoof": "hooves", "sheaf": "sheaves",
    "tomato": "tomatoes", "potato": "potatoes", "volcano": "volcanoes", "torpedo": "torpedoes", "hero": "heroes",
    "buffalo": "buffaloes", "mango": "mangoes", "mosquito": "mosquitoes", "tornado": "tornadoes",
    # Words of medicine, microscopy and botany that keep their Latin or Greek plural.
    "nucleus": "nuclei", "nucleolus": "nucleoli", "bacillus": "bacilli", "coccus": "cocci", "fungus": "fungi",
    "bronchus": "bronchi", "thrombus": "thrombi", "embolus": "emboli", "villus": "villi", "calculus": "calculi",
    "alveolus": "alveoli", "glomerulus": "glomeruli", "tubulus": "tubuli", "sulcus": "sulci", "gyrus": "gyri",
    "locus": "loci", "focus": "foci", "radius": "radii", "cactus": "cacti", "stimulus": "stimuli",
    "meniscus": "menisci", "humerus": "humeri", "acinus": "acini", "corpus": "corpora", "viscus": "viscera",
    "vertebra": "vertebrae", "larva": "larvae", "alga": "algae", "pupa": "pupae", "scapula": "scapulae",
    "papilla": "papillae", "fibula": "fibulae", "tibia": "tibiae", "maxilla": "maxillae", "nebula": "nebulae",
    "macula": "maculae", "bulla": "bullae", "bursa": "bursae", "lamina": "laminae", "trabecula": "trabeculae",
    "stoma": "stomata", "bacterium": "bacteria", "ovum": "ova", "datum": "data", "stratum": "strata",
    "septum": "septa", "atrium": "atria", "cilium": "cilia", "epithelium": "epithelia", "ganglion": "ganglia",
    "mitochondrion": "mitochondria", "criterion": "criteria", "phenomenon": "phenomena", "foramen": "foramina",
    "lumen": "lumina", "axis": "axes", "vertex": "vertices", "vortex": "vortices", "cortex": "cortices",
    "apex": "apices", "matrix": "matrices", "helix": "helices", "appendix": "appendices", "cervix": "cervices",
    "calyx": "calyces", "phalanx": "phalanges", "larynx": "larynges", "pharynx": "pharynges",
    # Singular words that end like a plural.
    "lens": "lenses", "gas": "gases", "canvas": "canvases", "atlas": "atlases", "bias": "biases",
    "pancreas": "pancreases", "iris": "irises", "pelvis": "pelvises", "trellis": "trellises", "alias": "aliases",
}
"""Last word → its plural."""

_ENDINGS = (("woman", "women"), ("fireman", "firemen"), ("workman", "workmen"), ("fisherman", "fishermen"))
_UNCHANGED = frozenset({
    "aircraft", "sheep", "livestock", "traffic", "debris", "people", "cattle", "deer", "moose", "bison", "salmon",
    "trout", "shrimp", "series", "species", "offspring", "poultry", "police", "headquarters", "barracks", "crossroads",
    "chassis", "biceps", "rendezvous",
    # Plurals without the s.
    *(many for many in _IRREGULAR.values() if not many.endswith("s")), "men", "women", "media",
})
_LIKE_AIRCRAFT = ("craft", "fish", *(many for _, many in _ENDINGS))
"""Words that end so have the same plural."""

_MASS = frozenset({
    "water", "vegetation", "grass", "farmland", "land", "soil", "sand", "snow", "ice", "mud", "asphalt", "concrete",
    "gravel", "rubble", "fog", "smoke", "dust", "oil", "foliage", "undergrowth", "shrubbery", "scrub", "rice", "corn",
    "wheat", "maize", "barley", "cotton", "sugarcane", "hay", "waste", "garbage", "trash", "litter", "machinery",
    "equipment", "furniture", "luggage", "baggage", "blood", "fat", "mucus", "pus", "tissue", "cartilage", "stroma",
    "edema", "oedema", "necrosis", "fibrosis", "emphysema", "pneumonia", "inflammation",
    "terrain", "sky", "background", "clutter",
})
"""Last words of names of a substance: nobody counts waters, but regions of water."""

_AREAS = frozenset({"residential", "industrial", "commercial", "urban", "suburban", "rural", "agricultural"})
"""Scene classes that are adjectives: of an area."""
# fmt: on

_NEVER_SPOKEN = re.compile(r"[\s_<>\[\]{}|;,]+")
_HUMP = re.compile(
    r"(?<=[a-z]{2})(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})|(?<=[a-z0-9]\d)(?=[A-Z][a-z]{2})|(?<=[A-Z]\d)(?=[A-Z][a-z]{2})"
)
_CAPITALISED = re.compile(r"[A-Z][a-z]+")
_PREPOSITION = re.compile(r"(.*?\S)( (?:of|in|on|at|with|without|for|under) .+| \(.*\))")
# Begins like "you": a European, a one-way street, a unit.
_YOU = re.compile(r"eu|ewe|one(?![a-z])|once|ub|uv|u[cfhjkqrst][aeiou]|uni(?![dmn]|rr|nh|nt)", re.IGNORECASE)
_SILENT_H = re.compile(r"hour|honest|honou?r|heir", re.IGNORECASE)


@lru_cache(maxsize=4096)
def spoken(name: str) -> str:
    """Return a class name as it stands in text: words apart, and none of the signs answers are built of.

    Words that are run together with capitals are told apart and written small, abbreviations stay.

    >>> spoken("storage_tank"), spoken("DenseResidential"), spoken("MRIScan"), spoken("SUVs"), spoken("F16")
    ('storage tank', 'dense residential', 'MRI scan', 'SUVs', 'F16')
    """
    return words_apart(_NEVER_SPOKEN.sub(" ", name)).strip() or "thing"


def words_apart(text: str) -> str:
    """Return a text with the words told apart that are run together with capitals; see `spoken`."""
    return " ".join(_apart(word) for word in text.split(" "))


def _apart(word: str) -> str:
    parts = _HUMP.split(word)
    if len(parts) == 1:
        return word
    return " ".join(part.lower() if _CAPITALISED.fullmatch(part) else part for part in parts)


@lru_cache(maxsize=4096)
def cell_name(name: str) -> str:
    """Return a class name as one word, for grid answers: `storage_tank` → `storage-tank`."""
    return re.sub(r"[\s-]+", "-", spoken(name)).strip("-.") or "thing"


@lru_cache(maxsize=4096)
def plural(name: str) -> str:
    """Return the plural of a (spoken) class name; a name that looks like a plural stays.

    >>> plural("nucleus"), plural("storage_tank"), plural("bale of hay"), plural("water")
    ('nuclei', 'storage tanks', 'bales of hay', 'regions of water')
    """
    text = spoken(name)
    if headed := _PREPOSITION.fullmatch(text):
        return plural(headed[1]) + headed[2]
    if _last_word(text) in _MASS:
        return f"regions of {text}"
    if _last_word(text) in _AREAS:
        return f"{text} areas"
    last = re.split(r"[ -]", text)[-1]
    return text[: len(text) - len(last)] + _plural_word(last)


def _last_word(text: str) -> str:
    return re.split(r"[ -]", text)[-1].lower()


def _plural_word(word: str) -> str:
    lower = word.lower()
    if lower in _UNCHANGED or lower.endswith(_LIKE_AIRCRAFT):
        return word
    many = _IRREGULAR.get(lower) or next(
        (lower[: -len(one)] + more for one, more in _ENDINGS if lower.endswith(one)), None
    )
    if many is not None:
        return many if word == lower else many.capitalize() if word[:1].isupper() else many
    if lower.endswith("sis"):
        return word[:-2] + "es"
    if lower.endswith(("ss", "us", "sh", "ch", "x", "z")):
        return word + "es"
    if lower.endswith("s") and len(lower) > 2:
        return word
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


@lru_cache(maxsize=4096)
def with_article(name: str) -> str:
    """Return "a ship", "an RBC", "a residential area"; plural names and substances stand alone.

    >>> with_article("urban_area"), with_article("university"), with_article("X-ray"), with_article("water")
    ('an urban area', 'a university', 'an X-ray', 'water')
    """
    text = spoken(name)
    if _last_word(text) in _MASS or plural(text) == text:
        return text
    if _last_word(text) in _AREAS:
        text = f"{text} area"
    return f"{'an' if _begins_with_vowel(text) else 'a'} {text}"


def _begins_with_vowel(text: str) -> bool:
    """Whether a text is read with a vowel at its beginning."""
    word = text.split(" ")[0]
    letters = re.match(r"[^\W\d_]*", word)
    head = letters[0] if letters else ""
    if not head:
        # Eight, eleven and eighteen.
        return word.startswith(("8", "11", "18"))
    spelled = len(head) == 1 and len(word) > 1  # X-ray, F16
    # Capitals are spelled out where they are few or have no vowel: an MRI, an SVHN.
    if spelled or (head.isupper() and len(head) > 1 and (len(head) < 4 or not re.search("[AEIOUY]", head))):
        return head[0].upper() in "AEFHILMNORSX"
    if head[0].lower() in "aeiou":
        return _YOU.match(head) is None
    return _SILENT_H.match(head) is not None


def decimals(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number with so many decimals; what is rounded to nothing has no sign.

    >>> decimals(-0.04, 1), decimals(0.04, 1, signed=True), decimals(0.06, 1, signed=True), decimals(-1.25, 2)
    ('0.0', '0.0', '+0.1', '-1.25')
    """
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text if text.strip("+-0.") else text.lstrip("+-")


def how_many(count: int, name: str) -> str:
    """Return "one ship", "three ships", "31 ships"."""
    word = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)
    return f"{word} {spoken(name) if count == 1 else plural(name)}"


def listed(parts: list[str]) -> str:
    """Join with commas and "and"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def ninth_of(x: float, y: float) -> str:
    """Return the name of the ninth that holds a point.

    Args:
        x, y: Fractions 0..1 of the width and height.
    """
    return NINTHS[min(int(y * 3), 2)][min(int(x * 3), 2)]


def size_word(share: float) -> str:
    """Return "tiny", "small", "medium" or "large".

    Args:
        share: Share of the image's area that the box has, 0..1.
    """
    side = share**0.5
    return next((word for bound, word in SIZE_STEPS if side < bound), "large")
