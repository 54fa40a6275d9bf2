"""Evaluates tables of predictions or segmentations; needs neither torch nor the scans.

Example:
    table = PredictionTable.from_csv("predictions.csv")
    results = evaluate(table, rule="sens>=0.95", prevalence=0.1)
    write_report(results, Path("report"))

    masks = SegmentationTable.from_csv("segmentations.csv")
    write_report(evaluate(masks, tolerance=1.0), Path("report_of_masks"))
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
