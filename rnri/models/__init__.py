"""Models: loading of checkpoints, encoding, decoding, prediction, schedules, and deterministic sampling.

This package does not contain inversion methods. Import its submodules directly; only some submodules import diffusers
and transformers.
"""
