"""Cached results: atomic file writes, cache keys, and the stores of inverted seeds and of finished units."""
