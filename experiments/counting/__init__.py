"""Counts the captions of a corpus that mention each concept, and groups the concepts by this count into buckets.

The modules of this package are imported one by one, not by this file. No module imports PyTorch, and ``buckets`` does
not import the code that searches captions.
"""
