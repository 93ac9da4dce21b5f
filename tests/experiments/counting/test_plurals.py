"""Captions with the singular or the plural of a name mention the name, also if the name itself is a plural."""

import pytest

from experiments.counting.frequency import spellings
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
lamp_shades, tree_trunk tree_trunks, attorney-at-law attorneys-at-law, coat-of-mail_shell coat-of-mail_shells
"""
NUMBERS = [tuple(word.replace("_", " ") for word in both.split()) for both in PAIRS.split(",")]


@pytest.mark.parametrize(("singular", "plural"), NUMBERS)
def test_singular_and_plural_mention_each_other(singular, plural):
    for name, other in ((singular, plural), (plural, singular)):
        assert batch_counts({"it": (name,)}, [f"{other} asleep", other.upper(), name]) == {"it": 3}, name


@pytest.mark.parametrize(
    ("plural", "other"),
    [("cacti", "cactuses"), ("Dobermen", "Dobermans"), ("octopi", "octopuses"), ("mangos", "mangoes")],
)
def test_plurals_of_one_singular_mention_each_other(plural, other):
    assert batch_counts({"it": (plural,)}, [other]) == {"it": 1}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("glasses", "glass"), ("opera glasses", "opera glass"), ("scissors", "scissor"), ("jeans", "Jean"),
        ("shorts", "short"), ("news", "new"), ("bus", "bu"), ("lens", "Len"), ("gas", "GA"), ("canvas", "Canva"),
        ("iris", "iri"), ("octopus", "octopu"), ("cactus", "cactu"), ("chess", "ches"), ("series", "serie"),
        ("species", "specie"), ("physics", "physic"), ("tennis", "tenni"), ("Texas", "Texa"), ("Mercedes", "mercede"),
        ("GPS", "GP"), ("Levi's", "levi"), ("omen", "Oman"), ("ramen", "raman"), ("opera", "opus"), ("mine", "ours"),
        ("die", "dies"), ("bus", "bi"), ("spaghetti", "spaghettus"), ("pizza", "pizzum"), ("Roman", "Romen"),
    ],
)  # fmt: skip
def test_other_words_are_not_forms(name, form):
    assert form.lower() not in number_variants(name)


@pytest.mark.parametrize("name", ["猫", "हाथी", "слон", "٣", "3", "!!!", "-", "of", "'", "pj's", "\u00ad", "x" * 300])
def test_every_name_is_a_form_of_itself(name):
    assert number_variants(name) >= {name.replace("\u00ad", "").lower()}


def test_invisible_and_fullwidth_characters():
    assert "elephant" in number_variants("ele\u00adphants") and "elephants" in number_variants("ｅlephant\u200b")
    assert {" tshirts ", " t shirts "} <= spellings("T\u2011shirt")
