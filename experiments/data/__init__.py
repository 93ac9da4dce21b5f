"""Data sources: concepts, images and captions from folders, ImageNet, COCO or the emoji corpus in ``assets/emoji``.

The modules of this package import no experiment and no neural network. This file does not import the modules, so that a
run loads only the code of its own data source.
"""
