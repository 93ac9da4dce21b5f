"""Copies of references are detected even if they are mirrored, shifted or recolored; drawings by others are not."""

from functools import partial

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from experiments.data.concepts import EmojiConcepts
from experiments.evaluation.classifier import load_classifier
from experiments.evaluation.copy_detector import (
    CopyThreshold,
    ImageScore,
    RealConcept,
    image_vectors,
    real_concept,
    shifted,
    shifted_versions,
)

pytestmark = pytest.mark.slow

CONCEPTS = 12
COPIES = {
    "the same": lambda image: image,
    "mirrored": lambda image: image.flip(-1),
    "shifted": partial(shifted, down=3, right=-2),
    "recolored": partial(transforms.adjust_hue, hue_factor=0.15),
    "less saturated": partial(transforms.adjust_saturation, saturation_factor=0.5),
    "blurred": partial(transforms.gaussian_blur, kernel_size=5, sigma=1.0),
    "mirrored and shifted": lambda image: shifted(image.flip(-1), -2, 2),
}


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("assets/models/classifier")


@pytest.fixture(scope="module")
def drawings() -> dict[str, tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """References, held-out drawings and designers of some concepts of the embedded corpus."""
    source = EmojiConcepts("assets/emoji", "a {phrase}", "white", 1000, 42)
    others = source.labeled_real_images()
    selected = source.concepts()[::26][:CONCEPTS]
    return {
        concept.name: (
            torch.from_numpy(concept.references[:]),
            torch.from_numpy(others[concept.name][:]),
            concept.references.groups + others[concept.name].groups,
        )
        for concept in selected
    }


@pytest.fixture(scope="module")
def concepts(classifier, drawings) -> dict[str, RealConcept]:
    return {name: real_concept(classifier, *images) for name, images in drawings.items()}


@pytest.fixture(scope="module")
def threshold(concepts) -> CopyThreshold:
    return CopyThreshold({name: concept.score_references() for name, concept in concepts.items()})


@pytest.mark.parametrize("change", COPIES)
def test_changed_references_are_copies(change, classifier, drawings, concepts, threshold):
    names = list(drawings)[:4]
    for name in names:
        images = torch.stack([COPIES[change](image) for image in drawings[name][0]])
        scores = concepts[name].score(image_vectors(classifier, images))
        assert [score.is_copy(threshold.of(name)) for score in scores] == [True] * 3, name


def test_few_drawings_by_others_are_copies(threshold):
    copies = [
        score.is_copy(threshold.of(name))
        for name, scores in threshold.scores.items()
        for score in scores
        if score.distances is not None
    ]
    assert len(copies) > 2 * CONCEPTS
    assert sum(copies) / len(copies) <= 0.2  # 10 % in expectation: 5 % by each of the two distances


def test_drawings_of_another_concept_are_no_copies(classifier, drawings, concepts, threshold):
    first, second, *_ = drawings
    scores = concepts[first].score(image_vectors(classifier, drawings[second][0]))
    assert [score.is_copy(threshold.of(first)) for score in scores] == [False] * 3


def test_scores_do_not_depend_on_the_batch(classifier, drawings, concepts):
    name, (references, others, _) = next(iter(drawings.items()))
    images = torch.cat([others, references])
    together = concepts[name].score(image_vectors(classifier, images))
    alone = [concepts[name].score(image_vectors(classifier, image[None]))[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert a.distances == pytest.approx(b.distances, abs=1e-4)
        assert a.m_cp == pytest.approx(b.m_cp, abs=1e-3)
        assert a.authentic == b.authentic


def by_hand(values: list[float], references: int, groups: str) -> RealConcept:
    """Return a concept whose real images are points of a line, with both distances equal."""
    real = torch.tensor(values)[:, None]
    versions = real[: references + 1][None]
    return RealConcept(references, [versions, versions], [real, real], torch.ones(len(real), 1), list(groups))


def test_distances_are_divided_by_the_mean_distance_of_real_images():
    concept = by_hand([0, 2, 6], 2, "abc")
    assert concept.scales().tolist() == pytest.approx([(4 + 36 + 16) / 3] * 2)
    (score,) = concept.score_references()[:1]  # the other reference and the held-out image: 2, 6
    assert score.distances == pytest.approx([4 / 16] * 2)


def test_images_of_one_group_are_not_compared():
    concept = by_hand([0, 1, 5], 2, "aab")
    assert concept.scales().tolist() == pytest.approx([(25 + 16) / 2] * 2)
    assert [score.distances for score in concept.score_references()] == [None, None]  # one image has no scale


def test_concept_with_one_real_image_has_no_scores():
    concept = by_hand([3], 1, "a")
    assert concept.score_references() == [ImageScore()]
    assert ImageScore().is_copy((1.0, 1.0)) is None


def test_threshold_ignores_real_images_of_the_same_concept():
    distances = [[ImageScore((k, 10 * k))] for k in range(1, 22)]
    threshold = CopyThreshold({str(k): scores for k, scores in enumerate(distances)} | {"own": [ImageScore((0, 0))]})
    assert threshold.of("own") == pytest.approx((2, 20))
    assert ImageScore((1.9, 99)).is_copy(threshold.of("own"))
    assert ImageScore((99, 19.9)).is_copy(threshold.of("own"))
    assert not ImageScore((2.1, 20.1)).is_copy(threshold.of("own"))
    assert CopyThreshold({"own": [ImageScore((1, 1))]}).of("own") is None


def test_versions_of_an_image_begin_with_the_image():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    versions = shifted_versions(images)
    assert torch.equal(versions[0], images)
    assert torch.equal(versions[len(versions) // 2], images.flip(-1))
    assert torch.equal(shifted(images, 0, 1)[..., 1:], images[..., :-1])
    assert torch.equal(shifted(images, -2, 0)[..., :-2, :], images[..., 2:, :])
