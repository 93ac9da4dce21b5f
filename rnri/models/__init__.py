"""Models: loading of checkpoints, encoding, decoding, prediction, schedules, and deterministic sampling.

The package ``rnri.models`` does not contain inversion methods. Import its submodules directly; only some submodules
import diffusers and transformers.
"""
