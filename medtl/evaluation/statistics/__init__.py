"""Estimates with their intervals, resampling of patients, and comparisons."""
