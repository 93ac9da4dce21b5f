"""Singular and plural forms of concept names: ``inflect``, with a table of exceptions.

The head noun is inflected: the last word, and the word before a preposition (house of cards, mother-in-law). A name in
the singular gets its plurals, regular and irregular (Dobermans, Dobermen). A name in the plural gets its singular and
the other plurals of that singular (cacti: cactus, cactuses). An unusual extra form does no harm, because captions do
not contain it; the exceptions are words for which ``inflect`` misses a form, or whose wrong form is another word
(news, new).
"""

from __future__ import annotations

import re
from functools import cache

from experiments.counting.text import nfkc


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PREPOSITIONS = _words("at by de des du for from in of off on out over to under up with without")

# Words without another number, or whose other number means something else.
_INVARIABLE = _words(
    """
    acoustics aerobics athletics corps crossroads economics electronics ethics genetics gymnastics headquarters
    mathematics means news optics physics politics robotics series species suds thanks
    bellows binoculars boxers breeches briefs britches clothes dungarees eyeglasses jeans knickers leggings molasses
    overalls pajamas pants pincers pliers pyjamas rabies scissors shears shorts slacks spectacles sunglasses tights
    tongs trousers tweezers underpants
    """
)
# The same for whole names only: the plural of wine glass is wine glasses, but glasses are not a glass.
_INVARIABLE_NAMES = frozenset(
    ("arms", "bars", "bathing trunks", "dark glasses", "field glasses", "glasses", "opera glasses", "parallel bars",
     "reading glasses", "safety glasses", "shades", "swimming trunks", "trunks")
)  # fmt: skip

# Singulars that look like plurals, and without the ending like another word.
_SINGULAR = _words(
    """
    alias ananas atlas bias canvas cerastes chaos charles christmas cosmos dallas gas gps gras hercules james jones lens
    mars mercedes moses patas pharos rhinoceros texas thermos triceratops wales yes
    carmen cyclamen omen ramen semen specimen yemen
    """
)
# Plurals in -us and -is; other words with these endings are singular.
_PLURAL = _words(
    """
    bayous caribous emus gnus gurus menus tutus zebus
    alibis bikinis bonsais chilis corgis emojis kimonos kiwis martinis okapis rabbis safaris salamis samurais
    skis spaghettis sushis taxis tipis tsunamis wapitis yetis zucchinis
    """
)

# Plurals that replace those of inflect.
_PLURALS = {
    "automaton": ("automatons", "automata"),
    "child": ("children",),
    "die": ("dice",),
    "foot": ("feet",),
    "hoof": ("hoofs", "hooves"),
    "larva": ("larvas", "larvae"),
    "man": ("men",),
    "meatloaf": ("meatloafs", "meatloaves"),
    "mine": ("mines",),
    "passerby": ("passersby",),
    "tooth": ("teeth",),
    "woman": ("women",),
    **{word: (f"{word}s",) for word in ("epoch", "monarch", "nudibranch", "patriarch")},
    **{f"{stem}us": (f"{stem}uses", f"{stem}i") for stem in ("abac", "croc", "gladiol", "octop", "papyr", "platyp")},
}
# Singulars whose irregular plural is recognized in a name.
_IRREGULAR = _words(
    """
    alumnus antenna aquarium axis bacterium beau bureau cactus cherub crisis criterion die fungus gateau genus goose
    hippopotamus index larva louse matrix medium mouse nucleus oasis ox passerby person phenomenon plateau radius
    stimulus tableau vertex
    """
)
# Plurals of several singulars.
_SINGULARS = {"axes": ("ax", "axe", "axis"), "bases": ("base", "basis"), "pickaxes": ("pickax", "pickaxe")}


def number_variants(name: str) -> set[str]:
    """The name in lower case, with its head noun as written, in the singular and in the plural; hyphens stay."""
    name = nfkc(name).strip()
    forms = {name.lower()}
    if name.lower() in _INVARIABLE_NAMES:
        return forms
    words = list(re.finditer(r"[^\W_](?:[\w'’]*[^\W_])?", name))
    for head in _head_nouns(words):
        for form in _other_forms(head[0]):
            forms.add(f"{name[: head.start()]}{form}{name[head.end() :]}".lower())
    return forms


def _head_nouns(words: list[re.Match]) -> list[re.Match]:
    """The last word, and the word before the first preposition."""
    preposition = next((k for k, word in enumerate(words) if k and word[0].lower() in _PREPOSITIONS), 0)
    return words[-1:] + (words[preposition - 1 : preposition] if preposition else [])


def _other_forms(head: str) -> set[str]:
    """Other forms of a head noun, in lower case."""
    word = head.lower()
    if word in _INVARIABLE or "'" in word or "’" in word:
        return set()
    singulars = _singulars(word)
    return singulars.union(*map(_plurals, singulars)) if singulars else set(_plurals(word))


@cache
def _inflect_engines():
    import inflect  # takes seconds

    modern, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    return modern, classical


@cache
def _plurals(word: str) -> frozenset[str]:
    """Plurals of a singular."""
    if word in _PLURALS:
        return frozenset(_PLURALS[word])
    # By their capital inflect knows nations: Germans, but firemen.
    capitalized = word.capitalize() if word.endswith("man") else word
    forms = {engine.plural_noun(capitalized).lower() for engine in _inflect_engines()}
    return frozenset(forms | {_regular_plural(word)})


def _regular_plural(word: str) -> str:
    if re.search("(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search("[^aeiou]y$", word) else f"{word}s"


@cache
def _irregular_singulars() -> dict[str, tuple[str, ...]]:
    return {plural: (word,) for word in (*_IRREGULAR, *_PLURALS) for plural in _plurals(word)} | _SINGULARS


def _singulars(word: str) -> set[str]:
    """Singulars of a plural; empty for a word that is none."""
    if word in _irregular_singulars():
        return set(_irregular_singulars()[word])
    if word in _SINGULAR or word.endswith("ss") or (word.endswith(("us", "is")) and word not in _PLURAL):
        return set()
    singular = _inflect_engines()[0].singular_noun(word) if word.endswith(("s", "men")) else False
    singulars = {singular} if singular else set()
    if re.search("([^aeiou]i|[aeiou]ch)es$", word):  # cherry or cookie, peach or moustache
        singulars.add(word[:-1])
    return singulars - {word}
