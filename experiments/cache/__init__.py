"""Cached results: atomic file writes, cache keys, and the stores of seeds and finished units."""
