"""Choosing an encoder, and using its features.

rank              choice.py      ranks candidates by labels or by masks; with the distance of two sites and advice
extract_features  features.py    features of scans, computed once and stored
save_features     export.py      a table and an array of them, for any tool
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
