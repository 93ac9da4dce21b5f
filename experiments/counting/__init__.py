"""Counts the captions that mention each concept, and divides concepts into head (frequent), medium and tail (rare).

``__init__.py`` imports no module of the package. No module imports PyTorch, and the module ``buckets`` does not import
the code that searches captions. Therefore a program that only divides concepts into head, medium and tail starts
quickly.
"""
