"""Renders results as a page; reads nothing but results.

Example:
    write_report(evaluate(PredictionTable.from_csv("predictions.csv")), Path("report"))
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
