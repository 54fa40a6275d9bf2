"""Cases to batches: the grid, preprocessing, the cache, augmentation, patches."""
