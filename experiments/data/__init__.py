"""Data sources: concepts, images and captions from folders, ImageNet, COCO or the emoji corpus in ``assets/emoji``.

This package imports no experiment and no neural network. Import the modules of this package one by one, so that a run
with one data source does not load the code of the others.
"""
