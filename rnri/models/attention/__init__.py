"""Attention processors that let edited images reuse the attention of their source image (Prompt-to-Prompt, injection).

The processors are part of the models package because they depend on the network's architecture;
:mod:`rnri.editing` uses the processors.
"""
