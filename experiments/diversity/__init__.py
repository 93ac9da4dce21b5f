"""Experiment on seed diversity: measures how different and how correct the images of one prompt are."""
