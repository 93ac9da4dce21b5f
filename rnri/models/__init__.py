"""Models: loading of checkpoints, encoding, decoding, prediction, schedules, and deterministic sampling.

The package ``rnri.models`` does not contain inversion methods. Import the submodules that you need, because only some
of them import diffusers and transformers, which takes seconds.
"""
