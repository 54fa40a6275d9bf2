"""Trials with hostile or unlucky inputs, by discovery over commands and recipes."""
