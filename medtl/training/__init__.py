"""The training loop, and what stands around it: checkpoints, validation, costs, learning curves."""
