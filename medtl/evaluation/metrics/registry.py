"""What each measure is: title, definition in plain words, which way is better, kind of interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """One measure.

    Attributes:
        title: as it stands in tables.
        interval: `auroc`, `proportion`, `mean`, `percentile` or `point` (see
            `medtl.evaluation.statistics.resample.estimate`).
        better: `higher`, `lower`, or "" where neither is.
        definition: what it is, for the report.
        paired: whether differences between models are reported.
    """

    title: str
    interval: str
    better: str
    definition: str
    paired: bool = False


MEASURES: dict[str, Spec] = {
    "auroc": Spec(
        "AUROC",
        "auroc",
        "higher",
        "Chance that a case with the class scores higher than a case without it; ties count one half. With "
        "more than two classes: the mean over the classes, each against all others.",
        paired=True,
    ),
    "class_auroc": Spec(
        "AUROC, one class against the rest", "auroc", "higher", "AUROC of one class against all others."
    ),
    "balanced_accuracy": Spec(
        "Balanced accuracy",
        "proportion",
        "higher",
        "Mean over the classes of the share of their cases that is called right. With two classes it is the "
        "mean of sensitivity and specificity at the operating point.",
        paired=True,
    ),
    "accuracy": Spec(
        "Accuracy",
        "proportion",
        "higher",
        "Share of all cases that is called right; it depends on how frequent each class is.",
        paired=True,
    ),
    "sensitivity": Spec(
        "Sensitivity",
        "proportion",
        "higher",
        "Share of the positive cases at or above the frozen operating point.",
        paired=True,
    ),
    "specificity": Spec(
        "Specificity",
        "proportion",
        "higher",
        "Share of the negative cases below the frozen operating point.",
        paired=True,
    ),
    "recall": Spec(
        "Recall", "proportion", "higher", "Share of the cases of one class that is called that class."
    ),
    "ppv": Spec(
        "PPV",
        "percentile",
        "higher",
        "Chance that a case called positive is positive, at the stated prevalence (Bayes' rule), not at the "
        "share in this sample.",
    ),
    "npv": Spec(
        "NPV",
        "percentile",
        "higher",
        "Chance that a case called negative is negative, at the stated prevalence.",
    ),
    "brier": Spec(
        "Brier score",
        "percentile",
        "lower",
        "Mean squared distance between the probabilities and the reference standard: of the positive class "
        "with two classes (0 to 1), summed over the classes with more (0 to 2).",
        paired=True,
    ),
    "nll": Spec(
        "Log loss",
        "percentile",
        "lower",
        "Mean negative natural logarithm of the probability of the right class.",
        paired=True,
    ),
    "debiased_squared_error": Spec(
        "Squared calibration error, debiased",
        "percentile",
        "lower",
        "Mean squared gap between predicted and observed in 10 bins of about equal numbers, less the part "
        "that sampling alone would cause (Kumar 2019, with the variance taken over patients). Calibrated "
        "predictions give 0 on average at any number of cases; values slightly below 0 are chance.",
        paired=True,
    ),
    "ece": Spec(
        "Expected calibration error (L1, 10 equal-width bins)",
        "point",
        "lower",
        "Mean absolute gap between predicted and observed in 10 bins of equal width. Biased upwards on few "
        "cases, therefore without an interval; the debiased error is the one to compare.",
    ),
    "calibration_slope": Spec(
        "Calibration slope",
        "percentile",
        "",
        "Slope of a logistic regression of the reference standard on the predicted log odds. 1 is ideal; "
        "below 1 the predictions are too extreme.",
    ),
    "calibration_intercept": Spec(
        "Calibration in the large",
        "percentile",
        "",
        "Intercept of the same regression with the slope held at 1. 0 is ideal; below 0 the predictions are "
        "too high.",
    ),
    "predicted_share": Spec("Share called", "proportion", "", "Share of all cases that is called one class."),
    "observed_share": Spec(
        "Share by the reference standard",
        "proportion",
        "",
        "Share of one class among the cases with a reference standard.",
    ),
    "dice": Spec(
        "Dice",
        "mean",
        "higher",
        "Overlap of a case's segmentation and reference: twice the shared volume over the sum of both volumes. Mean "
        "over cases.",
        paired=True,
    ),
    "iou": Spec(
        "IoU",
        "mean",
        "higher",
        "Shared volume over the volume of the union (Jaccard index). Mean over cases.",
    ),
    "nsd": Spec(
        "NSD",
        "mean",
        "higher",
        "Surface Dice: share of both surfaces that lies within the tolerance of the other surface (Nikolov 2021). "
        "Mean over cases.",
        paired=True,
    ),
    "hd95": Spec(
        "HD95",
        "mean",
        "lower",
        "The larger of the two directed 95th percentiles of the distances from one surface to the other. Mean over "
        "cases.",
        paired=True,
    ),
    "assd": Spec(
        "ASSD",
        "mean",
        "lower",
        "Mean distance between the surfaces, the points of both taken together. Mean over cases.",
        paired=True,
    ),
    "voxel_sensitivity": Spec(
        "Sensitivity",
        "mean",
        "higher",
        "Share of the reference's volume that is found. Mean over cases.",
        paired=True,
    ),
    "voxel_precision": Spec(
        "Precision",
        "mean",
        "higher",
        "Share of the segmented volume that belongs to the reference. Mean over cases.",
        paired=True,
    ),
    "volume_bias": Spec(
        "Volume bias",
        "mean",
        "",
        "Mean over cases of the segmented volume minus the reference's. 0 is ideal; below 0 the structure is drawn "
        "too small.",
    ),
    "volume_lower": Spec(
        "Lower limit of agreement",
        "percentile",
        "",
        "Bias less 1.96 standard deviations of the differences: 95 % of the cases are expected between the limits "
        "(Bland and Altman 1986).",
    ),
    "volume_upper": Spec(
        "Upper limit of agreement", "percentile", "", "Bias plus 1.96 standard deviations of the differences."
    ),
    "volume_error": Spec(
        "Absolute volume error",
        "mean",
        "lower",
        "Mean over cases of the absolute difference of the volumes.",
        paired=True,
    ),
    "volume_reference": Spec(
        "Volume by the reference", "mean", "", "Mean over cases of the reference's volume."
    ),
    "voxel_nll": Spec(
        "Log loss of voxels",
        "percentile",
        "lower",
        "Mean negative natural logarithm of the probability given to what a voxel is, within the band. Mean over "
        "the case's voxels, then over cases.",
        paired=True,
    ),
    "voxel_brier": Spec(
        "Brier score of voxels",
        "percentile",
        "lower",
        "Mean squared distance between a voxel's probability and the reference (0 or 1), within the band. Mean over "
        "the case's voxels, then over cases.",
        paired=True,
    ),
    "voxel_ece": Spec(
        "Calibration error of voxels",
        "point",
        "lower",
        "Mean absolute gap between predicted and observed share in 10 bins of equal width, within the band; every "
        "case weighs the same. Biased upwards, therefore without an interval; log loss is the one to compare.",
    ),
}
"""Every measure by name, in the order of the report."""

KINDS = {
    "positive": "probability of the positive class",
    "top_label": "probability of the most probable class",
    "classwise": "mean over the classes",
}
"""What a calibration error is about."""
