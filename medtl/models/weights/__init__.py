"""Pretrained weights: where they come from, and what other tools call the same layers."""
