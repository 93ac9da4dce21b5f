"""A name in one number is found in the other, whichever of the two it has."""

import pytest

from experiments.counting.frequency import spellings
from experiments.counting.imagenet_counts import imagenet_classes
from experiments.counting.plurals import number_variants
from tests.experiments.counting.captions import batch_counts

PAIRS = """
donut donuts, waffle waffles, Doberman Dobermans, Doberman Dobermen, German Germans, human humans, snowman snowmen,
bus buses, lens lenses, gas gases, dress dresses, cross crosses, box boxes, bush bushes, church churches, peach
peaches, moustache moustaches, quiche quiches, horse horses, rose roses, shoe shoes, prize prizes, quiz quizzes,
cherry cherries, smoothie smoothies, hoagie hoagies, pie pies, monkey monkeys, toy toys, photo photos, tomato
tomatoes, mango mangos, mango mangoes, hero heroes, zoo zoos, knife knives, wolf wolves, leaf leaves, loaf loaves,
glove gloves, scarf scarves, hoof hooves, roof roofs, giraffe giraffes, bivalve bivalves, man men, woman women, child
children, person people, person persons, mouse mice, goose geese, foot feet, tooth teeth, ox oxen, louse lice, die
dice, fish fishes, octopus octopuses, octopus octopi, cactus cacti, cactus cactuses, fungus fungi, nucleus nuclei,
alumnus alumni, larva larvae, antenna antennae, bacterium bacteria, phenomenon phenomena, criterion criteria, aquarium
aquaria, index indices, matrix matrices, axis axes, axe axes, crisis crises, oasis oases, iris irises, atlas atlases,
rhinoceros rhinoceroses, walrus walruses, bureau bureaux, plateau plateaus, menu menus, emu emus, taxi taxis, sushi
sushis, bikini bikinis, emoji emojis, kiwi kiwis, TV TVs, café cafés, piñata piñatas, canvas canvases, monarch
monarchs, house_of_cards houses_of_cards, man_of_war men_of_war, mother-in-law mothers-in-law, passer-by passers-by,
passerby passersby, hen-of-the-woods hens-of-the-woods, jack-in-the-box jack-in-the-boxes, T-shirt T-shirts,
pick_up_truck pick_up_trucks, hot_dog hot_dogs, wine_glass wine_glasses, Belgian_waffle Belgian_waffles, lamp_shade
lamp_shades, tree_trunk tree_trunks, attorney-at-law attorneys-at-law, coat-of-mail_shell coat-of-mail_shells,
bicycle-built-for-two bicycles-built-for-two
"""
BOTH = [tuple(word.replace("_", " ") for word in both.split()) for both in PAIRS.split(",")]


@pytest.mark.parametrize(("singular", "plural"), BOTH)
def test_either_number_is_found_by_the_other(singular, plural):
    for name, other in ((singular, plural), (plural, singular)):
        assert batch_counts({"it": (name,)}, [f"{other} asleep", other.upper(), name]) == {"it": 3}, name


@pytest.mark.parametrize(
    ("plural", "other"),
    [("cacti", "cactuses"), ("Dobermen", "Dobermans"), ("octopi", "octopuses"), ("mangos", "mangoes")],
)
def test_a_plural_is_found_by_another(plural, other):
    assert batch_counts({"it": (plural,)}, [other]) == {"it": 1}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("glasses", "glass"), ("opera glasses", "opera glass"), ("scissors", "scissor"), ("jeans", "Jean"),
        ("shorts", "short"), ("news", "new"), ("bus", "bu"), ("lens", "Len"), ("gas", "GA"), ("canvas", "Canva"),
        ("iris", "iri"), ("octopus", "octopu"), ("cactus", "cactu"), ("chess", "ches"), ("series", "serie"),
        ("species", "specie"), ("physics", "physic"), ("tennis", "tenni"), ("Texas", "Texa"), ("Mercedes", "mercede"),
        ("GPS", "GP"), ("Levi's", "levi"), ("omen", "Oman"), ("ramen", "raman"), ("opera", "opus"),
        ("pumice", "pumouse"), ("supernova", "supernovum"), ("mine", "ours"), ("it", "they"), ("bus", "bi"),
        ("spaghetti", "spaghettus"), ("pizza", "pizzum"), ("houses of cards", "house of card"), ("Roman", "Romen"),
    ],
)  # fmt: skip
def test_words_that_look_otherwise_are_left(name, form):
    assert form.lower() not in number_variants(name)


@pytest.mark.parametrize("name", ["猫", "हाथी", "слон", "٣", "3", "!!!", "-", "of", "'", "pj's", "\u00ad", "x" * 300])
def test_every_name_has_itself(name):
    assert number_variants(name) >= {name.replace("\u00ad", "").lower()}


def test_a_name_that_is_hard_to_see_has_its_plural():
    assert "elephant" in number_variants("ele\u00adphants") and "elephants" in number_variants("ｅlephant\u200b")
    assert {" tshirts ", " t shirts "} <= spellings("T\u2011shirt")


def test_forms_of_imagenet():
    """Read through by eye: these are all that lose letters, and all that have one form."""
    names = [name for c in imagenet_classes() for name in c.synonyms]
    forms = {name: number_variants(name) - {name.lower()} for name in names}
    assert {form for name in names for form in forms[name] if len(form) < len(name)} == {
        "abaci", "baluster", "bouvier des flandres", "carrion fungi", "computer mice", "coral fungi",
        "duck-billed platypi", "duckbilled platypi", "hen-of-the-wood", "hippopotami", "mice", "platypi", "vacua",
    }  # fmt: skip
    assert {name for name in names if not forms[name]} == {
        "Ailurus fulgens", "Arenaria interpres", "Canis latrans", "Carcharodon carcharias", "Great Pyrenees",
        "Latrodectus mactans", "Maltese", "Mustela nigripes", "Pan troglodytes", "Pekinese", "Pekingese", "Siamese",
        "Ursus arctos", "Vulpes vulpes", "bars", "bathing trunks", "binoculars", "daddy longlegs", "dark glasses",
        "field glasses", "hautbois", "jammies", "malinois", "opera glasses", "parallel bars", "pj's", "shades",
        "sunglasses", "swimming trunks",
    }  # fmt: skip
