"""Overlap of a segmentation and its reference."""

from __future__ import annotations

import math

from medtl.evaluation.metrics.metric import MaskMetric
from medtl.evaluation.metrics.pair import MaskPair


def _dice(pair: MaskPair) -> float:
    return 2 * pair.num_common / (pair.num_reference + pair.num_called)


def _iou(pair: MaskPair) -> float:
    return pair.num_common / (pair.num_reference + pair.num_called - pair.num_common)


def _sensitivity(pair: MaskPair) -> float:
    return pair.num_common / pair.num_reference if pair.num_reference else math.nan


def _precision(pair: MaskPair) -> float:
    return pair.num_common / pair.num_called if pair.num_called else math.nan


METRICS = (
    MaskMetric(
        name="dice",
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
        from_masks=_dice,
        median=True,
    ),
    MaskMetric(
        name="iou",
        title="IoU",
        definition="Shared volume over the volume of the union (Jaccard index). Mean over cases.",
        section="overlap",
        interval="mean",
        better="higher",
        from_masks=_iou,
    ),
    MaskMetric(
        name="voxel_sensitivity",
        title="Sensitivity",
        definition="Share of the reference's volume that is found. Mean over cases.",
        section="overlap",
        interval="mean",
        better="higher",
        paired=True,
        from_masks=_sensitivity,
        column="sensitivity",
        empty="defined",
    ),
    MaskMetric(
        name="voxel_precision",
        title="Precision",
        definition="Share of the segmented volume that belongs to the reference. Mean over cases.",
        section="overlap",
        interval="mean",
        better="higher",
        paired=True,
        from_masks=_precision,
        column="precision",
        empty="defined",
    ),
)
