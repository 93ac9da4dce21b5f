"""Attention processors that let edited images reuse the attention of their source image (Prompt-to-Prompt, injection).

They belong to the models because they depend on the network's architecture; :mod:`rnri.editing` applies them.
"""
