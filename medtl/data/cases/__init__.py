"""Volumes to cases: labels, masks, patients, splits; all faults at once."""
