"""The volume of a segmentation compared with that of its reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medtl.evaluation.metrics.metric import MaskMetric
from medtl.evaluation.metrics.pair import MaskPair
from medtl.evaluation.statistics.arrays import Floats

AGREEMENT = 1.96
"""Standard deviations between the bias and a limit of agreement."""


def _reference(pair: MaskPair) -> float:
    return pair.volume(pair.num_reference)


def _difference(columns: Mapping[str, Floats]) -> Floats:
    return columns["volume_predicted"] - columns["volume_reference"]


def _absolute_difference(columns: Mapping[str, Floats]) -> Floats:
    return np.abs(_difference(columns))


def _lower_limit(mean: Floats, deviation: Floats) -> Floats:
    return mean - AGREEMENT * deviation


def _upper_limit(mean: Floats, deviation: Floats) -> Floats:
    return mean + AGREEMENT * deviation


METRICS = (
    MaskMetric(
        name="volume_reference",
        title="Volume by the reference",
        definition="Mean over cases of the reference's volume.",
        section="volumes",
        interval="mean",
        better="",
        unit="volume",
        from_masks=_reference,
        empty="defined",
        over_structures=False,
    ),
    MaskMetric(
        name="volume_bias",
        title="Volume bias",
        definition=(
            "Mean over cases of the segmented volume minus the reference's. 0 is ideal; below 0 the "
            "structure is drawn too small."
        ),
        section="volumes",
        interval="mean",
        better="",
        unit="volume",
        from_columns=_difference,
        over_structures=False,
    ),
    MaskMetric(
        name="volume_lower",
        title="Lower limit of agreement",
        definition=(
            "Bias less 1.96 standard deviations of the differences: 95 % of the cases are expected "
            "between the limits (Bland and Altman 1986)."
        ),
        section="volumes",
        interval="percentile",
        better="",
        unit="volume",
        from_columns=_difference,
        over_cases=_lower_limit,
        over_structures=False,
    ),
    MaskMetric(
        name="volume_upper",
        title="Upper limit of agreement",
        definition="Bias plus 1.96 standard deviations of the differences.",
        section="volumes",
        interval="percentile",
        better="",
        unit="volume",
        from_columns=_difference,
        over_cases=_upper_limit,
        over_structures=False,
    ),
    MaskMetric(
        name="volume_error",
        title="Absolute volume error",
        definition="Mean over cases of the absolute difference of the volumes.",
        section="volumes",
        interval="mean",
        better="lower",
        unit="volume",
        paired=True,
        main=True,
        from_columns=_absolute_difference,
        over_structures=False,
    ),
)
