"""Few-shot augmentation experiment: compares classifiers that are trained with and without generated images."""
