"""How far the volume of a segmentation is from that of its reference."""

from __future__ import annotations

from medtl.evaluation.metrics.metric import Metric

METRICS = (
    Metric(
        name="volume_reference",
        task="segmentation",
        title="Volume by the reference",
        definition="Mean over cases of the reference's volume.",
        section="volumes",
        interval="mean",
        better="",
        unit="volume",
    ),
    Metric(
        name="volume_bias",
        task="segmentation",
        title="Volume bias",
        definition=(
            "Mean over cases of the segmented volume minus the reference's. 0 is ideal; below 0 the "
            "structure is drawn too small."
        ),
        section="volumes",
        interval="mean",
        better="",
        unit="volume",
    ),
    Metric(
        name="volume_lower",
        task="segmentation",
        title="Lower limit of agreement",
        definition=(
            "Bias less 1.96 standard deviations of the differences: 95 % of the cases are expected "
            "between the limits (Bland and Altman 1986)."
        ),
        section="volumes",
        interval="percentile",
        better="",
        unit="volume",
    ),
    Metric(
        name="volume_upper",
        task="segmentation",
        title="Upper limit of agreement",
        definition="Bias plus 1.96 standard deviations of the differences.",
        section="volumes",
        interval="percentile",
        better="",
        unit="volume",
    ),
    Metric(
        name="volume_error",
        task="segmentation",
        title="Absolute volume error",
        definition="Mean over cases of the absolute difference of the volumes.",
        section="volumes",
        interval="mean",
        better="lower",
        unit="volume",
        paired=True,
        main=True,
    ),
)
