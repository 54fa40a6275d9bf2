"""Tables of predictions, of segmentations and of voxels: read once, checked in full."""
