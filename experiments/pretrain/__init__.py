"""Trainings of the embedded models, a file each; nothing else imports it."""

from experiments.pretrain.autoencoder import PretrainAutoencoder
from experiments.pretrain.classifier import PretrainClassifier
from experiments.pretrain.clip import PretrainClip
from experiments.pretrain.denoiser import PretrainDenoiser

__all__ = [
    "PretrainAutoencoder",
    "PretrainClassifier",
    "PretrainClip",
    "PretrainDenoiser",
]
