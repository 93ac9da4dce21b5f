"""Trains the small emoji models in ``assets/models``, with one module per model.

The other packages do not import this package.
"""
