"""Losses of classification and of segmentation."""
