"""Counts how many captions of a corpus mention each concept, and groups the concepts by this count (buckets).

Import the modules of this package one by one: no module imports PyTorch, and ``buckets`` does not import the code that
searches captions.
"""
