"""Which model to keep, decided without a label of the target."""
