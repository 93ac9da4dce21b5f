"""A name in singular and plural.

The head noun changes: the last word, or the one before a preposition (house of cards, mother-in-law). A singular is
searched for in the plural too, regular and irregular (Dobermans, Dobermen); a plural in the singular, and in that
singular's other plurals. A word in -s counts as a plural unless it ends in -ss, -us or -is, is one of the singulars
listed here (lens, gas), or has no singular of the same meaning (scissors, species). Latin letters alone have plurals.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from unittest.mock import patch

from experiments.counting.text import compatible


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_LINKS = _listed("de des du for from of with without")  # after a head noun
_PREPOSITIONS = _LINKS | _listed("at by in off on out over to under up")  # or inside another word: pick up truck
_PRONOUNS = _listed(
    "he her hers herself him himself his i it its itself me my myself our ours she their theirs them they this that "
    "these those us we who whom whose you your yours"
)

# Singulars in -s other than those in -ss, -us and -is.
_SINGULAR = _listed(
    """
    adidas alias ananas arkansas atlas bias camas canvas caracas christmas cutlas dallas das douglas eyas gas gras
    gulyas honduras judas kansas las lucas madras mas midas nicolas pancreas patas sassafras teargas texas thomas
    vegas xmas
    asbestos barbados bathos benthos calvados carlos chaos cos cosmos eros ethos extrados hommos kudos lagos laos los
    pathos pharos pothos reredos rhinoceros rooibos thermos
    achilles andes angeles ares aries athens brussels caries cerastes charles cheops cyclops dickens hercules hermes
    jacques jakes james jones leeds lens mars mercedes moses naples orleans philips pisces protoceratops
    pyrites rhodes sauternes schnapps starbucks streptomyces tagetes triceratops ulysses versailles wales yes
    """
)
# Words of one number, or whose singular is another thing.
_ONE_NUMBER = _listed(
    """
    acoustics acrobatics aerobics athletics economics electronics ethics genetics gymnastics linguistics logistics
    mathematics obstetrics optics physics politics robotics
    alms barracks bellows biceps corps crossroads diabetes doldrums eaves feces forceps gallows gramps headquarters
    herpes innings lazybones longlegs means measles mews molasses mumps news pampas pyrenees quadriceps rabies
    rollmops sapiens sawbones shambles siemens suds thanks triceps yellowlegs
    bedclothes binoculars bloomers breeches briefs britches clothes eyeglasses jammies jeans jodhpurs knickerbockers
    knickers nightclothes overalls pajamas pants pincers pliers pyjamas scissors secateurs shears shorts slacks
    spectacles sunglasses sweatpants tights tongs trousers tweezers underclothes underpants undies
    arctos carcharias fulgens interpres latrans mactans nigripes troglodytes vulpes
    """
)
# Names whose last word is a plain plural after other words: wine glasses, lamp shades, tree trunks, candy bars.
_ONE_NUMBER_NAMES = frozenset(
    ("arms", "bars", "bathing trunks", "dark glasses", "field glasses", "glasses", "opera glasses", "parallel bars",
     "reading glasses", "safety glasses", "shades", "swimming trunks", "trunks")
)  # fmt: skip

# Plurals in -us and -is.
_PLURAL_US = _listed(
    "bantus bayous bijous caribous coypus emus gnus gurus haikus hindus kudus kudzus manitous marabous menus muumuus "
    "sudokus tofus tutus tzus zebus zulus"
)
_PLURAL_IS = _listed(
    "alibis alkalis audis bengalis bonsais broccolis cannolis chilis chillis coatis corgis ferraris iraqis israelis "
    "kepis kiwis kois lamborghinis leis maseratis maxis midis okapis origamis pakistanis pierogis rabbis raviolis "
    "safaris salamis samurais saris somalis taxis tipis tsunamis wadis wapitis yetis yogis"
)
_PLURAL_IS_ENDINGS = ("jis", "kis", "shis", "zis", "inis", "ettis", "ottis")  # emojis, sushis, bikinis, spaghettis

# Plurals that inflect does not know, by their singular.
_PLURALS = {
    "automaton": "automata", "hoof": "hooves", "larva": "larvae", "octahedron": "octahedra", "paparazzo": "paparazzi",
    "meatloaf": "meatloaves", "passerby": "passersby", "polyhedron": "polyhedra", "virtuoso": "virtuosi",
    **{f"{stem}ch": f"{stem}chs" for stem in _listed("epo lo matriar monar nudibran oligar patriar")},
    **{f"{stem}us": f"{stem}i" for stem in _listed("abac croc gladiol narciss octop papyr platyp thesaur")},
}  # fmt: skip
_ONLY_REGULAR = frozenset({"mine"})  # inflect: ours
_ONLY_IRREGULAR = _listed(
    "calf child die elf foot goose half knife life loaf man ox self shelf thief tooth wife wolf woman"
)
_SINGULARS = {plural: (singular,) for singular, plural in _PLURALS.items()} | {
    "axes": ("ax", "axe", "axis"), "bases": ("base", "basis"), "pickaxes": ("pickax", "pickaxe")
}  # fmt: skip

# Endings of irregular plurals and of their singulars.
_IRREGULAR = (
    ("men", "man"), ("mice", "mouse"), ("lice", "louse"), ("geese", "goose"), ("feet", "foot"), ("teeth", "tooth"),
    ("children", "child"), ("people", "person"), ("oxen", "ox"), ("dice", "die"), ("i", "us"), ("i", "o"), ("ae", "a"),
    ("ata", "a"), ("a", "um"), ("a", "on"), ("eaux", "eau"), ("im", ""), ("ices", "ex"), ("ices", "ix"),
)  # fmt: skip
_NOT_IRREGULAR = _listed(
    "abdomen acumen albumen amen bitumen bremen carmen casanova catechumen cerumen cyclamen dolmen examen foramen "
    "hymen lumen nova omen pavlova pumice ramen regimen rumen semen specimen stamen supernova turkmen yemen"
)


def number_variants(name: str) -> set[str]:
    """The name in lower case, in singular and in plural as far as it has them; hyphens stay."""
    name = compatible(name).strip()
    forms = {name.lower()}
    if not forms & _ONE_NUMBER_NAMES:
        for start, end in _heads(name):
            forms |= {f"{name[:start]}{word}{name[end:]}".lower() for word in _forms(name[start:end])}
    return forms


def _heads(name: str) -> Iterator[tuple[int, int]]:
    """Where the head noun begins and ends; two places where usage differs (jacks-in-the-box, jack-in-the-boxes)."""
    words = list(re.finditer(r"\S+", name))
    link = next((k for k, word in enumerate(words) if k and word[0].lower() in _PREPOSITIONS), 0)
    heads = words[link - 1 : link] if link else []
    if not link or words[link][0].lower() not in _LINKS:
        heads += words[-1:]
    for head in heads:
        for part in _head_parts(head[0]):
            yield head.start() + part.start(), head.start() + part.end()


def _head_parts(word: str) -> list[re.Match]:
    parts = list(re.finditer(r"[^\W_](?:[\w'’]*[^\W_])?", word))
    if not any(part[0].lower() in _PREPOSITIONS for part in parts[1:]):
        return parts[-1:]
    return [parts[0], parts[-1]]


def _forms(head: str) -> set[str]:
    """The other forms of a head noun."""
    word = head.lower()
    acronym = len(head) <= 3 and head.isupper() and word.endswith("s")  # GPS
    if acronym or word in _PRONOUNS or "'" in word or "’" in word or not _latin(word):
        return set()
    if word in _ONE_NUMBER or word.endswith(("series", "species")):
        return set()
    singulars = _singulars(word)
    return singulars.union(*map(_plurals, singulars)) if singulars else _plurals(word)


def _latin(word: str) -> bool:
    """Whether the last letter is one of the Latin alphabet's, marks aside."""
    letters = [sign for sign in unicodedata.normalize("NFD", word) if not unicodedata.combining(sign)]
    return "a" <= letters[-1] <= "z"


@cache
def _engines():
    # inflect has typeguard compile each of its functions anew on import, to check types that are right here: 3 s.
    checks = patch("typeguard.typechecked", lambda function: function) if find_spec("typeguard") else nullcontext()
    with checks:
        import inflect

    modern, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    return modern, classical


@cache
def _plurals(word: str) -> frozenset[str]:
    """The plurals of a singular."""
    if word in _ONLY_REGULAR:
        return frozenset({f"{word}s"})
    # Nations in -man are told by their capital: Germans, not Germen.
    given = word.capitalize() if word.endswith("man") else word
    modern, classical = (engine.plural_noun(given).lower() for engine in _engines())
    if (modern == word and word.endswith("s")) or (re.search("[^e]ese$", word) and word != "diocese"):
        return frozenset()
    found = {modern, classical, _PLURALS.get(word, modern)} - {word, f"{word}s" if word.endswith("s") else word}
    if word not in _ONLY_IRREGULAR and not (word.endswith("is") and modern == f"{word[:-2]}es"):
        found.add(_regular(word))
    return frozenset(found)


def _regular(word: str) -> str:
    if re.search("(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search("[^aeiou]y$", word) else f"{word}s"


def _singulars(word: str) -> set[str]:
    """The singulars of a plural; none of what is no plural."""
    if word in _SINGULARS:
        return set(_SINGULARS[word])
    found = set() if word in _NOT_IRREGULAR else set(_irregular_singulars(word))
    if found or not word.endswith("s") or not _is_plural(word):
        return found
    singular = _engines()[0].singular_noun(word) or word
    found = {word[:-1] if word.endswith("valves") else singular}
    if re.search("([^aeiou]i|[aeiou]ch)es$", word):  # cherry or cookie, peach or moustache
        found.add(word[:-1])
    return found - {word}


def _irregular_singulars(word: str) -> Iterator[str]:
    for plural, singular in _IRREGULAR:
        if word.endswith(plural) and word.removesuffix(plural) + singular:
            candidate = word.removesuffix(plural) + singular
            if word in _plurals(candidate):
                yield candidate


def _is_plural(word: str) -> bool:
    """Whether a word in -s, other than those of one number, is a plural."""
    if word.endswith("us"):
        return word in _PLURAL_US or word.endswith("eaus")
    if word.endswith("is"):
        return word in _PLURAL_IS or (word.endswith(_PLURAL_IS_ENDINGS) and word != "finis")
    return not word.endswith("ss") and word not in _SINGULAR
