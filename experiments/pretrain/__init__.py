"""Training of the small emoji models in ``assets/models``, with one module per model."""
