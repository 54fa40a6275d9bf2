"""Score: the class shares that a model predicts at the target, compared with those of the source's labels."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medtl.selection.information import logits_of

LOST_CLASS = 0.2
"""A class is lost if its predicted share is below this fraction of its share of the source's labels."""


TOO_MUCH = 5.0
"""A class is over-called if its predicted share exceeds this multiple of its share of the source's labels."""


def class_shares(rows: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    """Share of each class among the most probable ones."""
    chosen = logits_of(rows, classes).argmax(1)
    return {c: float((chosen == k).mean()) for k, c in enumerate(classes)}


def distance(shares: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Total variation distance of two distributions over the classes, in [0, 1]."""
    return 0.5 * sum(abs(shares[c] - expected[c]) for c in expected)


def fault_of(
    shares: Mapping[str, float], reference: Mapping[str, float], expected: Mapping[str, float]
) -> str:
    """The fault of a model's shares, or "": a class that it lost or over-calls, more than the reference does."""
    lost = [c for c in expected if shares[c] < LOST_CLASS * expected[c] and shares[c] <= reference[c]]
    if lost:
        return f"it hardly predicts {', '.join(lost)} at the target"
    over = [c for c in expected if expected[c] and shares[c] > max(TOO_MUCH * expected[c], reference[c])]
    if over:
        times = max(shares[c] / expected[c] for c in over)
        return f"it predicts {', '.join(over)} at the target {times:.0f} times as much as the source has"
    return ""
