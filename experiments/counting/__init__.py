"""Counts the captions of a corpus that mention each concept, and divides the concepts by their counts into buckets.

``__init__.py`` imports no module of the package. No module imports PyTorch, and ``buckets`` does not import the code
that searches captions. Therefore a program that needs only the buckets starts quickly.
"""
