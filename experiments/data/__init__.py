"""Data sources: concepts, images and captions from folders, ImageNet, COCO or the emoji corpus in ``assets/emoji``.

The modules of this package import no experiment and no neural network. The file ``__init__.py`` imports no modules of
the package, so that a run loads only the code of its own data source.
"""
