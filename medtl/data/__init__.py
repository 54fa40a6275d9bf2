"""From scans to cases to batches.

collect_cases  cases/       labels or masks, patients, splits; all faults at once
Preprocess     tensors/     one grid and one range of values, the cache, augmentation, patches, batches
Cohort         cohort.py    cases and their cache, from which data sets are taken
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
