"""Training of the embedded models, one module per model; nothing else imports it."""
