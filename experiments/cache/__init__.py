"""Cached results: atomic file writes, cache keys, and stores of inverted seeds and of finished units of work."""
