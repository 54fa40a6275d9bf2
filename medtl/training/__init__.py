"""The training loop, with checkpoints, validation, costs and learning curves."""
