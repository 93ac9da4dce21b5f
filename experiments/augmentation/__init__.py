"""Experiment on few-shot augmentation: compares classifiers that are trained with and without generated images."""
