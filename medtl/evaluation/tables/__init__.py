"""Tables of predictions, segmentations and voxels: read once, checked completely."""
