"""Editing experiment: edits the images of a benchmark with several methods, and computes metrics of the edits."""
