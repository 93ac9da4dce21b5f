"""Cached results: atomic file writes, cache keys, and stores of inverted seeds and of other finished results."""
