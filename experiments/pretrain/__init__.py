"""Trains the small emoji models in ``assets/models``, one module per model; no other package imports this package."""
