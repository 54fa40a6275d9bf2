"""How often each class is called, and how often it occurs."""

from __future__ import annotations

from medtl.evaluation.metrics.metric import Metric

METRICS = (
    Metric(
        name="predicted_share",
        task="classification",
        title="Share called",
        definition="Share of all cases that is called one class.",
        section="shares",
        interval="proportion",
        better="",
    ),
    Metric(
        name="observed_share",
        task="classification",
        title="Share by the reference standard",
        definition="Share of one class among the cases with a reference standard.",
        section="shares",
        interval="proportion",
        better="",
    ),
)
