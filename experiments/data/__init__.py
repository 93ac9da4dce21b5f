"""Sources of concepts, images and captions, and the embedded corpus. It imports no experiment and no network.

Import its modules directly, so that a run with one source does not load the others.
"""
