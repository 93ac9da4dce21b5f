"""Data sources: concepts, images and captions from folders, ImageNet, COCO or the emoji corpus in ``assets/emoji``.

This package imports no experiment and no neural network. The modules of this package are imported one by one, not by
this file, so that a run with one data source does not load the code of the other data sources.
"""
