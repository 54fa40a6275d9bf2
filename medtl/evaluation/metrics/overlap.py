"""How much of a segmentation and its reference is common to both."""

from __future__ import annotations

from medtl.evaluation.metrics.metric import Metric

METRICS = (
    Metric(
        name="dice",
        task="segmentation",
        title="Dice",
        definition=(
            "Overlap of a case's segmentation and reference: twice the shared volume over the sum of "
            "both volumes. Mean over cases."
        ),
        section="overlap",
        interval="mean",
        better="higher",
        paired=True,
        headline=1,
        main=True,
    ),
    Metric(
        name="iou",
        task="segmentation",
        title="IoU",
        definition="Shared volume over the volume of the union (Jaccard index). Mean over cases.",
        section="overlap",
        interval="mean",
        better="higher",
    ),
    Metric(
        name="voxel_sensitivity",
        task="segmentation",
        title="Sensitivity",
        definition="Share of the reference's volume that is found. Mean over cases.",
        section="overlap",
        interval="mean",
        better="higher",
        paired=True,
    ),
    Metric(
        name="voxel_precision",
        task="segmentation",
        title="Precision",
        definition="Share of the segmented volume that belongs to the reference. Mean over cases.",
        section="overlap",
        interval="mean",
        better="higher",
        paired=True,
    ),
)
