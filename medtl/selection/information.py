"""Score: the information in a model's predictions for the target, which is low if they collapse onto one class."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax

MIN_GAIN = 0.01
"""Information (nats) by which an adapted model must lead the reference; less is a tie, and ties keep the reference."""


def logits_of(rows: pd.DataFrame, classes: tuple[str, ...]) -> NDArray[np.float64]:
    """The logits (n, K) in rows of a predictions table."""
    return rows[[f"logit_{c}" for c in classes]].to_numpy(np.float64)


def information(rows: pd.DataFrame, classes: tuple[str, ...]) -> float:
    """Entropy of the mean prediction less the mean entropy of the predictions."""
    log_p = log_softmax(logits_of(rows, classes), axis=1)
    mean = np.exp(log_p).mean(0)
    return float(-(mean * np.log(mean.clip(1e-12))).sum() + (np.exp(log_p) * log_p).sum(1).mean())
