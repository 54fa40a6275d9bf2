"""Choosing an encoder: stored features, transferability scores, and the distance of two sites."""
