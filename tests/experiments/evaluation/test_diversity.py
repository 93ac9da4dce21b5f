"""Detection of copies, diversity and coverage, compared with values that are computed by hand."""

import math

import pytest
import torch

from experiments.evaluation.classifier import load_classifier
from experiments.evaluation.diversity import detect_copies, perceptual_vectors, precision_recall, vendi_score
from experiments.evaluation.metrics import perceptual_distance


def test_perceptual_vectors_reproduce_the_perceptual_distance():
    classifier = load_classifier("assets/models/classifier")
    images = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    vectors = perceptual_vectors(classifier, images)
    expected = perceptual_distance(classifier, images[:2].float() / 255, images[2:].float() / 255)
    torch.testing.assert_close((vectors[:2] - vectors[2:]).square().sum(1), expected, rtol=1e-3, atol=1e-5)


def test_copies_are_closer_to_references_than_the_threshold():
    references = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    real = torch.cat([references, torch.tensor([[0.0, 3.0]])])  # squared distances 16, 9, 25
    detection = detect_copies(torch.tensor([[0.0, 1.0], [9.0, 0.0], [4.0, 3.5]]), references, real)
    assert detection.nearest.tolist() == [1.0, 25.0, 12.25]
    assert detection.nearest_index.tolist() == [0, 1, 1]
    assert detection.threshold == pytest.approx(9 + 0.05 * 2 * (16 - 9))
    assert detection.copies == [True, False, False]
    assert detection.pairwise == pytest.approx((82 + 22.25 + 37.25) / 3)


def test_single_images_have_no_pairwise_distance_or_threshold():
    detection = detect_copies(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    assert detection.threshold is None and detection.copies is None and detection.pairwise is None


def test_vendi_score_counts_different_images():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert vendi_score(torch.cat([a, a, a])) == pytest.approx(1)
    assert vendi_score(torch.cat([a, b])) == pytest.approx(2)
    shares = (0.75, 0.25)
    assert vendi_score(torch.cat([a, a, a, b])) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    with pytest.raises(ValueError, match="at least one image"):
        vendi_score(torch.zeros(0, 2))


def test_precision_recall_density_and_coverage_by_hand():
    real = torch.tensor([0.0, 1.0, 2.0, 10.0])[:, None]  # nearest neighbors at 1, 1, 1, 8
    generated = torch.tensor([0.5, 1.5, 30.0])[:, None]  # at 1, 1, 28.5
    metrics = precision_recall(real, generated, neighbors=1)
    assert metrics["precision"] == pytest.approx(2 / 3)  # 30 is in no real ball
    assert metrics["recall"] == 1  # 0, 1 and 2 are in the ball of 0.5 or 1.5, 10 in that of 30
    assert metrics["density"] == pytest.approx((2 + 2 + 0) / 3)  # 0.5 by 0 and 1, 1.5 by 1 and 2; 10's ball ends at 2
    assert metrics["coverage"] == pytest.approx(3 / 4)
    same = precision_recall(real, real, neighbors=1)
    assert same["precision"] == same["recall"] == same["coverage"] == 1


def test_too_few_images_give_none():
    assert set(precision_recall(torch.zeros(5, 2), torch.zeros(9, 2)).values()) == {None}
