"""Evaluation of images: networks that score images, metrics, and the registries of metrics of all experiments.

This package does not import code of the experiments.
"""

from experiments.evaluation.classifier import Classifier, Preprocessing, load_classifier
from experiments.evaluation.diversity import detect_copies, perceptual_vectors, precision_recall, vendi_score
from experiments.evaluation.inception import Inception, load_inception
from experiments.evaluation.metrics import (
    bootstrap_interval,
    frechet_distance,
    kernel_distance,
    perceptual_distance,
    psnr,
    roc_auc,
    ssim,
)

__all__ = [
    "Classifier",
    "Inception",
    "Preprocessing",
    "bootstrap_interval",
    "detect_copies",
    "frechet_distance",
    "kernel_distance",
    "load_classifier",
    "load_inception",
    "perceptual_distance",
    "perceptual_vectors",
    "precision_recall",
    "psnr",
    "roc_auc",
    "ssim",
    "vendi_score",
]
