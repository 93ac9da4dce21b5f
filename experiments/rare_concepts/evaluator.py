"""Classification of all generated images, after all units (images of one concept and arm) are written to disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.cache.store import SeedStore
from experiments.data.concepts import Concept
from experiments.data.images import Images
from experiments.evaluation.classifier import classify_images
from experiments.evaluation.diversity import CopyDetection, detect_copies, perceptual_vectors
from experiments.evaluation.inception import Inception
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.scoring import ClassifiedImages, classifier_ceiling
from experiments.runtime.progress import LOG_INTERVAL_S, Progress
from rnri.models.fingerprint import fingerprint

REAL_IMAGES_PER_CONCEPT = 20  # held-out real images per concept for the distance threshold of copies


@dataclass(frozen=True)
class Evaluator:
    """Classifies the generated images of a finished run.

    Attributes:
        context: inputs and settings of the run.
        real: real images for FID and KID, resized to the size of the generated images.
        labeled_real_images: real images of each concept, without its reference images, by the name of the concept.
        extractor: network that computes the features for FID and KID; None: the evaluation classifier computes the
            features.
    """

    context: RunContext
    real: Images
    labeled_real_images: Mapping[str, Images]
    extractor: Inception | None = None

    def arms(self) -> dict[str, ClassifiedImages]:
        """Classify the generated images of every arm; return the classified images by the name of the arm."""
        return {arm: self.classify_arm(arm) for arm in self.context.arms}

    def classify_arm(self, arm: str) -> ClassifiedImages:
        concepts, classifier = self.context.concepts, self.context.networks.classifier
        units = self.context.units(arm)
        progress = Progress(f"classifying {arm}", min_interval=LOG_INTERVAL_S)
        records: list[dict] = []
        detections: list[CopyDetection | None] = []

        def images() -> Iterator[Tensor]:
            for concept in concepts:
                tensors, record = units.read(concept.key)
                records.append(record)
                detections.append(self._detect_copies(concept, tensors["images"]))
                yield from tensors["images"]
                progress.finish(1)

        progress.start(len(concepts), 0, visible=True)
        features, labels = classify_images(classifier, images(), extractor=self.extractor)
        progress.close()
        samples = [sample for record in records for sample in record["samples"]]
        predictions = iter(labels)
        return ClassifiedImages(
            units=units,
            features=features,
            predictions=[next(predictions) if sample["finite"] else None for sample in samples],
            concepts=[concept for concept in concepts for _ in range(self.context.samples)],
            t_init=[record["t_init"] for record in records],
            t_opt=[record["t_opt"] for record in records],
            records=samples,
            extractor=(self.extractor or classifier).title,
            copy_detections=detections,
        )

    def classifier_ceiling(self) -> dict[str, float]:
        """Return the accuracy of the evaluation classifier on the reference images, per bucket and in total."""
        return classifier_ceiling(self.context.concepts, self.context.networks.classifier)

    def real_features(self) -> Tensor:
        """Return the features of the N real images, ``float64 [N, D]``. The features are cached in the run folder."""
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

    def _detect_copies(self, concept: Concept, images: Tensor) -> CopyDetection | None:
        """Compare the finite images of a concept with its reference images; return None if no image is finite."""
        if not len(images):
            return None
        other_images = self.labeled_real_images.get(concept.name)
        size = self.context.networks.model.image_size
        others = [] if other_images is None else other_images.resized(size).head(REAL_IMAGES_PER_CONCEPT)
        real = [torch.from_numpy(group[k]) for group in (concept.references, others) for k in range(len(group))]
        vectors = perceptual_vectors(self.context.networks.classifier, torch.stack([*images, *real]))
        generated, real_vectors = vectors[: len(images)], vectors[len(images) :]
        return detect_copies(generated, real_vectors[: len(concept.references)], real_vectors)

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
