"""What is called right: accuracy, sensitivity and specificity, predictive values."""

from __future__ import annotations

from medtl.evaluation.metrics.metric import Metric

METRICS = (
    Metric(
        name="balanced_accuracy",
        task="classification",
        title="Balanced accuracy",
        definition=(
            "Mean over the classes of the share of their cases that is called right. With two classes "
            "it is the mean of sensitivity and specificity at the operating point."
        ),
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        headline=1,
        main=True,
    ),
    Metric(
        name="accuracy",
        task="classification",
        title="Accuracy",
        definition=("Share of all cases that is called right; it depends on how frequent each class is."),
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
    ),
    Metric(
        name="sensitivity",
        task="classification",
        title="Sensitivity",
        definition="Share of the positive cases at or above the frozen operating point.",
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        main=True,
    ),
    Metric(
        name="specificity",
        task="classification",
        title="Specificity",
        definition="Share of the negative cases below the frozen operating point.",
        section="calls",
        interval="proportion",
        better="higher",
        paired=True,
        main=True,
    ),
    Metric(
        name="recall",
        task="classification",
        title="Recall",
        definition="Share of the cases of one class that is called that class.",
        section="calls",
        interval="proportion",
        better="higher",
    ),
    Metric(
        name="ppv",
        task="classification",
        title="PPV",
        definition=(
            "Chance that a case called positive is positive, at the stated prevalence (Bayes' rule), "
            "not at the share in this sample."
        ),
        section="calls",
        interval="percentile",
        better="higher",
    ),
    Metric(
        name="npv",
        task="classification",
        title="NPV",
        definition="Chance that a case called negative is negative, at the stated prevalence.",
        section="calls",
        interval="percentile",
        better="higher",
    ),
)
