"""Models: checkpoints as functions of tensors, their schedules, and deterministic sampling. No inversion.

Import the submodules directly; only some of them import diffusers and transformers.
"""
