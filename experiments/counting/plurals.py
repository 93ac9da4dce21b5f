"""Returns the singular and plural forms of concept names, from the package ``inflect`` and tables of exceptions.

Only the head nouns of a name are inflected: the last word, and the word before a preposition (house of cards,
mother-in-law). If a name is in the singular, its regular and irregular plurals are returned (Doberman: Dobermans,
Dobermen). If a name is in the plural, its singular and all other plurals of this singular are returned (cacti: cactus,
cactuses). A wrong plural such as Dobermen has no effect on the counts, because it does not occur in captions. The
tables of exceptions contain words for which ``inflect`` does not return all forms, or returns a different word (news:
new).
"""

from __future__ import annotations

import re
from functools import cache

from experiments.counting.text import nfkc


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PREPOSITIONS = _words("at by de des du for from in of off on out over to under up with without")

# Words that have no plural or no singular, and words whose plural or singular has a different meaning.
_INVARIABLE = _words(
    """
    acoustics aerobics athletics corps crossroads economics electronics ethics genetics gymnastics headquarters
    mathematics means news optics physics politics robotics series species suds thanks
    bellows binoculars boxers breeches briefs britches clothes dungarees eyeglasses jeans knickers leggings molasses
    overalls pajamas pants pincers pliers pyjamas rabies scissors shears shorts slacks spectacles sunglasses tights
    tongs trousers tweezers underpants
    """
)
# Names that are not inflected, for example because "glasses" (spectacles) is not the plural of "glass". A longer name
# that ends in one of these names is inflected: the singular of "wine glasses" is "wine glass".
_INVARIABLE_NAMES = frozenset(
    ("arms", "bars", "bathing trunks", "dark glasses", "field glasses", "glasses", "opera glasses", "parallel bars",
     "reading glasses", "safety glasses", "shades", "swimming trunks", "trunks")
)  # fmt: skip

# Words in the singular that end like a plural; without the ending they would be a different word (gas: ga, mars: mar).
_SINGULAR = _words(
    """
    alias ananas atlas bias canvas cerastes chaos charles christmas cosmos dallas gas gps gras hercules james jones lens
    mars mercedes moses patas pharos rhinoceros texas thermos triceratops wales yes
    carmen cyclamen omen ramen semen specimen yemen
    """
)
# Words in the plural that end in -us or -is; all other words with these endings are treated as singular.
_PLURAL = _words(
    """
    bayous caribous emus gnus gurus menus tutus zebus
    alibis bikinis bonsais chilis corgis emojis kimonos kiwis martinis okapis rabbis safaris salamis samurais
    skis spaghettis sushis taxis tipis tsunamis wapitis yetis zucchinis
    """
)

# Plurals by singular, for words whose plurals in the package inflect are wrong or incomplete.
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
# Singulars that are found from their irregular plurals (cacti: cactus).
_IRREGULAR = _words(
    """
    alumnus antenna aquarium axis bacterium beau bureau cactus cherub crisis criterion die fungus gateau genus goose
    hippopotamus index larva louse matrix medium mouse nucleus oasis ox passerby person phenomenon plateau radius
    stimulus tableau vertex
    """
)
# Plurals that belong to several singulars.
_SINGULARS = {"axes": ("ax", "axe", "axis"), "bases": ("base", "basis"), "pickaxes": ("pickax", "pickaxe")}


def number_variants(name: str) -> set[str]:
    """Return the variants of ``name`` in lower case: unchanged, and with the head nouns in the singular or plural.

    Hyphens are not changed.
    """
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
    """Return the last word of a name and, if the name has a preposition, the word before the first preposition."""
    preposition = next((k for k, word in enumerate(words) if k and word[0].lower() in _PREPOSITIONS), 0)
    return words[-1:] + (words[preposition - 1 : preposition] if preposition else [])


def _other_forms(head: str) -> set[str]:
    """Return the singular and plural forms of a head noun, in lower case."""
    word = head.lower()
    if word in _INVARIABLE or "'" in word or "’" in word:
        return set()
    singulars = _singulars(word)
    return singulars.union(*map(_plurals, singulars)) if singulars else set(_plurals(word))


@cache
def _inflect_engines():
    import inflect  # imported here, because the import takes seconds

    modern, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    return modern, classical


@cache
def _plurals(word: str) -> frozenset[str]:
    """Return the plurals of the singular noun ``word``."""
    if word in _PLURALS:
        return frozenset(_PLURALS[word])
    # The package inflect returns Germans instead of Germen only if the word begins with a capital letter.
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
    """Return the singulars of the plural noun ``word``; the set is empty if ``word`` is not a plural."""
    if word in _irregular_singulars():
        return set(_irregular_singulars()[word])
    if word in _SINGULAR or word.endswith("ss") or (word.endswith(("us", "is")) and word not in _PLURAL):
        return set()
    singular = _inflect_engines()[0].singular_noun(word) if word.endswith(("s", "men")) else False
    singulars = {singular} if singular else set()
    if re.search("([^aeiou]i|[aeiou]ch)es$", word):  # the singular may also end in -e: cookies, moustaches
        singulars.add(word[:-1])
    return singulars - {word}
