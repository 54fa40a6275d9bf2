"""Choosing an encoder, and using it as it is.

rank              choice.py      candidates in order, by labels or by masks; with the distance of two sites and advice
extract_features  features.py    features of scans, computed once and kept
save_features     export.py      a table and an array of them, for any tool
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
