"""Classification and scoring of the generated images of a run, after all images are on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from experiments.cache.store import SeedStore
from experiments.data.concepts import Concept
from experiments.data.images import Images
from experiments.evaluation.classifier import Classifier, classify_images
from experiments.evaluation.copy_detector import (
    DISTANCES,
    CopyThreshold,
    ImageScore,
    RealConcept,
    image_vectors,
    real_concept,
)
from experiments.evaluation.diversity import CopyDetection, detect_copies, perceptual_vectors
from experiments.evaluation.inception import Inception
from experiments.evaluation.sscd import Sscd, similarities
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.scoring import ClassifiedImages, ImageUnits
from experiments.runtime.progress import LOG_INTERVAL_S, Progress
from rnri.models.fingerprint import fingerprint

REAL_IMAGES_PER_CONCEPT = 20  # maximum number of held-out real images per concept, to score generated images
SCORES_VERSION = 1
"""Version of the definitions of the scores of real images, which is part of the cache key of the scores."""


@dataclass(frozen=True)
class References:
    """The reference images by concept key, with the same method ``read`` as a store of generated images."""

    concepts: Mapping[str, Concept]

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the reference images of the concept with the key ``unit``, and a record (dict of stored values).

        The durations in the record are None, because reference images are not generated.
        """
        images = torch.from_numpy(self.concepts[unit].references[:])
        return {"images": images}, {"t_init": None, "t_opt": None, "samples": [{"finite": True} for _ in images]}


@dataclass(frozen=True)
class Evaluator:
    """Classifies and scores the generated images of a finished run.

    Attributes:
        context: inputs and settings of the run.
        real: real images for FID and KID, resized to the size of the generated images.
        labeled_real_images: dict from the name of each concept to real images of the concept that are not reference
            images.
        other_concepts: additional concepts whose reference images are used to compute the distance below which a
            generated image counts as a copy.
        extractor: network that computes the features for FID and KID; None: the evaluation classifier computes the
            features.
        sscd: SSCD network, which measures the similarity of generated images to the reference images; None: the
            similarity is not measured.
    """

    context: RunContext
    real: Images
    labeled_real_images: Mapping[str, Images]
    other_concepts: Sequence[Concept] = ()
    extractor: Inception | None = None
    sscd: Sscd | None = None

    def arms(self) -> dict[str, ClassifiedImages]:
        """Classify and score the generated images.

        The returned dict maps the name of each arm (pipeline) to its classified images.
        """
        units = {arm: self.context.units(arm) for arm in self.context.arms}
        scores: dict[str, list[list[ImageScore | None]]] = {arm: [] for arm in units}
        detections: dict[str, list[CopyDetection | None]] = {arm: [] for arm in units}
        sscd: dict[str, list[float | None]] = {arm: [] for arm in units}
        progress = Progress("comparing images with references", min_interval=LOG_INTERVAL_S)
        progress.start(len(self.context.concepts), 0, visible=True)
        for concept in self.context.concepts:
            real = self.real_concept(concept)
            self._reference_scores(concept, real)  # cached for self.threshold, which would compute `real` again
            real_vectors = self._real_vectors(concept)
            for arm, store in units.items():
                tensors, record = store.read(concept.key)
                scores[arm].append(self._scores(real, tensors["images"], record["samples"]))
                detections[arm].append(self._detect_copies(concept, tensors["images"], real_vectors))
                sscd[arm] += self._similarities(concept, tensors["images"], record["samples"])
            progress.finish(1)
        progress.close()
        threshold = self.threshold
        classified = {
            arm: self._classify(arm, units[arm], scores[arm], detections[arm], threshold=threshold) for arm in units
        }
        return {arm: replace(images, similarities=sscd[arm]) for arm, images in classified.items()}

    @cached_property
    def real_row(self) -> ClassifiedImages:
        """The reference images, classified and scored as if they were generated images.

        The scores of the reference images are the scores that a perfect generator would reach. A reference image is
        not compared with itself, but with other real images (:meth:`RealConcept.score_references`).
        """
        concepts = {concept.key: concept for concept in self.context.concepts}
        scores = [list(self.threshold.scores[concept.name]) for concept in concepts.values()]
        return self._classify(
            "references", References(concepts), scores, [None] * len(concepts), threshold=self.threshold
        )

    @cached_property
    def threshold(self) -> CopyThreshold:
        """The distance to a reference image below which a generated image counts as a copy.

        The scores of the real images, from which the threshold is computed, are cached in the run folder.
        """
        concepts = [*self.context.concepts, *self.other_concepts]
        progress = Progress("comparing real images", min_interval=LOG_INTERVAL_S)
        progress.start(len(concepts), 0, visible=True)
        scores = {}
        for concept in concepts:
            scores[concept.name] = self._reference_scores(concept)
            progress.finish(1)
        progress.close()
        return CopyThreshold(scores)

    def _reference_scores(self, concept: Concept, real: RealConcept | None = None) -> list[ImageScore]:
        """Return the scores of the reference images of a concept; read them from the cache, or compute and store them.

        Args:
            concept: the concept.
            real: vectors of the real images of the concept; None: computed if the scores are not cached.
        """
        store = SeedStore(self.context.run_dir / "real")
        key = self._scores_key(concept)
        cached = store.get(key)
        if cached is None:
            cached = _pack((real or self.real_concept(concept)).score_references())
            store.put(key, cached)
        return _unpack(cached["scores"])

    def real_concept(self, concept: Concept) -> RealConcept:
        """Return the feature vectors of the reference images and the held-out real images of a concept."""
        parts = (concept.references, self._others(concept))
        references, others = (torch.from_numpy(images[:]) for images in parts)
        groups = None if None in [images.groups for images in parts] else [g for images in parts for g in images.groups]
        return real_concept(self.context.networks.classifier, references, others, groups)

    def _others(self, concept: Concept) -> Images:
        """Return real images of a concept that are not reference images."""
        images = self.labeled_real_images.get(concept.name)
        if images is None:
            return concept.references.head(0)
        return images.resized(self.context.networks.model.image_size).head(REAL_IMAGES_PER_CONCEPT)

    def _scores(self, real: RealConcept, images: Tensor, samples: Sequence[Mapping]) -> list[ImageScore | None]:
        """Return one score per sample of a concept; None for a sample with NaN or infinite pixels.

        Args:
            real: the real images of the concept, which the samples are compared with.
            images: the samples without NaN and infinity.
            samples: the records of all samples.
        """
        vectors = image_vectors(self.context.networks.classifier, images) if len(images) else None
        scores = iter(real.score(vectors) if vectors else [])
        return [next(scores) if sample["finite"] else None for sample in samples]

    def _similarities(self, concept: Concept, images: Tensor, samples: Sequence[Mapping]) -> list[float | None]:
        """Return the SSCD similarity of each sample to its most similar reference image.

        The similarity is None for a sample with NaN or infinite pixels, or if there is no SSCD network.
        """
        if self.sscd is None:
            return [None] * len(samples)
        values = iter(similarities(self.sscd, images, torch.from_numpy(concept.references[:])))
        return [next(values) if sample["finite"] else None for sample in samples]

    def _classify(
        self,
        title: str,
        units: ImageUnits,
        scores: Sequence[Sequence[ImageScore | None]],
        detections: Sequence[CopyDetection | None],
        *,
        threshold: CopyThreshold,
    ) -> ClassifiedImages:
        """Classify the images of one arm (pipeline), and return them together with their predictions and scores.

        Args:
            title: name of the arm in the titles of the progress bars.
            units: reads the generated images of a concept from the run folder.
            scores: scores that compare the samples of each concept with real images.
            detections: perceptual distances between the images of each concept and its reference images.
            threshold: distances below which an image is a copy.
        """
        networks, concepts = self.context.networks, self.context.concepts
        records = [units.read(concept.key)[1] for concept in concepts]
        samples = [sample for record in records for sample in record["samples"]]

        def predictions(labels: Sequence[str]) -> list[str | None]:
            finite = iter(labels)
            return [next(finite) if sample["finite"] else None for sample in samples]

        features, labels = self._labels(f"classifying {title}", units, networks.classifier, self.extractor)
        second = networks.second_classifier
        second_labels = None if second is None else self._labels(f"{title}, second classifier", units, second)[1]
        return ClassifiedImages(
            units=units,
            features=features,
            predictions=predictions(labels),
            second_predictions=None if second_labels is None else predictions(second_labels),
            concepts=[concept for concept, record in zip(concepts, records, strict=True) for _ in record["samples"]],
            t_init=[record["t_init"] for record in records],
            t_opt=[record["t_opt"] for record in records],
            records=samples,
            extractor=(self.extractor or networks.classifier).title,
            scores=[score for each in scores for score in each],
            thresholds=[
                threshold.of(concept.name) for concept, each in zip(concepts, scores, strict=True) for _ in each
            ],
            copy_detections=list(detections),
        )

    def _labels(
        self, title: str, units: ImageUnits, classifier: Classifier, extractor: Inception | None = None
    ) -> tuple[Tensor, list[str]]:
        """For all concepts, return the features and the predicted labels of the images without NaN and infinity."""
        progress = Progress(title, min_interval=LOG_INTERVAL_S)

        def images() -> Iterator[Tensor]:
            for concept in self.context.concepts:
                yield from units.read(concept.key)[0]["images"]
                progress.finish(1)

        progress.start(len(self.context.concepts), 0, visible=True)
        result = classify_images(classifier, images(), extractor=extractor)
        progress.close()
        return result

    def real_features(self) -> Tensor:
        """Return the features of the N real images, ``float64 [N, D]``, which are cached in the run folder."""
        store = SeedStore(self.context.run_dir / "real")
        key = self._real_key()
        cached = store.get(key)
        if cached is None:
            progress = Progress("features of the real images", "image", min_interval=LOG_INTERVAL_S)
            progress.start(len(self.real), 0, visible=True)
            images = progress.iterate(map(torch.from_numpy, self.real))
            features, _ = classify_images(self.context.networks.classifier, images, extractor=self.extractor)
            progress.close()
            cached = {"features": features}
            store.put(key, cached)
        return cached["features"]

    def _real_vectors(self, concept: Concept) -> Tensor:
        """Return perceptual vectors of real images of a concept: first the reference images, then held-out images."""
        groups = (concept.references, self._others(concept))
        images = [torch.from_numpy(group[k]) for group in groups for k in range(len(group))]
        return perceptual_vectors(self.context.networks.classifier, torch.stack(images))

    def _detect_copies(self, concept: Concept, images: Tensor, real: Tensor) -> CopyDetection | None:
        """Compare the generated images of a concept with its reference images; return None if there are no images.

        Args:
            concept: the concept.
            images: the generated images without NaN and infinity.
            real: perceptual vectors of the real images of the concept, beginning with the reference images.
        """
        if not len(images):
            return None
        generated = perceptual_vectors(self.context.networks.classifier, images)
        return detect_copies(generated, real[: len(concept.references)], real)

    def _scores_key(self, concept: Concept) -> dict[str, Any]:
        """Return the cache key for the scores of the reference images of a concept."""
        others = self._others(concept)
        return {
            "scores": SCORES_VERSION,
            "classifier": self.context.networks.classifier_fingerprint,
            "numerics": dict(self.context.networks.numerics),
            "concept": concept.key,
            "groups": concept.references.groups,
            "others": hashlib.sha256(b"".join(map(others.file_stamp, range(len(others))))).hexdigest(),
        }

    def _real_key(self) -> dict[str, Any]:
        """Return the cache key for the features of the real images."""
        content = hashlib.sha256()
        for k in range(len(self.real)):
            content.update(self.real.file_stamp(k))
        return {
            "classifier": self.context.networks.classifier_fingerprint,
            "extractor": fingerprint({"extractor": self.extractor}, {}) if self.extractor else None,
            "numerics": dict(self.context.networks.numerics),
            "images": content.hexdigest(),
        }


def _pack(scores: Sequence[ImageScore]) -> dict[str, Tensor]:
    """Return the scores of n images as a tensor ``[n, 4]``, in which NaN replaces scores that are None.

    The columns are the shape distance, the layout distance, ``authentic`` and ``m_cp`` of :class:`ImageScore`.
    """
    rows = [[*(score.distances or [None] * len(DISTANCES)), score.authentic, score.m_cp] for score in scores]
    values = [[torch.nan if value is None else float(value) for value in row] for row in rows]
    return {"scores": torch.tensor(values, dtype=torch.float64)}


def _unpack(values: Tensor) -> list[ImageScore]:
    """Convert the tensor ``[n, 4]`` that :func:`_pack` returned back to the scores of n images."""
    scores = []
    for row in values.tolist():
        *distances, authentic, m_cp = [None if value != value else value for value in row]
        pair = None if None in distances else tuple(distances)
        scores.append(ImageScore(pair, None if authentic is None else bool(authentic), m_cp))
    return scores
