"""Which model to keep, decided without a label of the target.

Two things can be known about a target without labels: how a model does on source validation, and what it
predicts for the target. A model that forgot the source, that no longer predicts one of the source's classes, or
that predicts one far too often, is vetoed. Of the remaining models, the one whose target predictions are the most
certain and diverse is kept (information maximisation: Shi and Sha 2012), because entropy alone rewards models that
collapsed onto one class (Musgrave et al. 2022). Methods that minimise entropy make their own evidence: TENT, SHOT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score

MAX_SOURCE_LOSS = 0.10
"""How much balanced accuracy on source validation a model may lose against the reference.

A veto requires that more was lost in 95 % of patient resamples (one-sided): validation sets are small, adaptation
always costs the source something, and a few cases must not decide.
"""

MIN_GAIN = 0.01
"""Information (nats) by which an adapted model must lead the reference; less is a tie, and ties keep the reference."""

LOST_CLASS = 0.2
"""A class is lost if its predicted share is below this fraction of its share of the source's labels."""


TOO_MUCH = 5.0
"""A class is over-called if its predicted share exceeds this multiple of its share of the source's labels."""

SOURCE_FIGURE = "Balanced accuracy on source validation (most probable class)"
TARGET_FIGURE = "Information in the target's predictions (nats)"
SHARE_FIGURE = "Distance of the target's predicted class shares from the source's labels"


@dataclass(frozen=True)
class Evidence:
    """One figure of every model, and its interpretation."""

    name: str
    values: dict[str, float]
    verdict: str


@dataclass(frozen=True)
class Decision:
    """The model to keep, the reason, and the evidence."""

    model: str
    reason: str
    evidence: tuple[Evidence, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as reports and `decision.json` hold them."""
        return {**asdict(self), "evidence": [asdict(e) for e in self.evidence]}


def recommend(
    predictions: pd.DataFrame, classes: tuple[str, ...], *, reference: str = "source_only"
) -> Decision:
    """Chooses between the reference and the adapted models of a predictions table.

    The target's labels are dropped before anything is computed. With several seeds each figure is their mean.

    Args:
        predictions: rows with `model`, `domain`, `split`, `label` and `logit_<class>`.
        classes: the classes, in the order of the logits.
        reference: the model that was not adapted.
    """
    source = predictions[(predictions.domain == "source") & (predictions.split == "validation")]
    target = predictions[predictions.domain == "target"].drop(columns="label")
    models = [reference, *sorted(set(predictions.model) - {reference})]
    expected = source[source.model == reference].label.value_counts(normalize=True)
    return _decide(
        _Figures(
            source_figure=SOURCE_FIGURE,
            target_figure=TARGET_FIGURE,
            measure="balanced accuracy",
            most="carry the most information",
            more="carry more information",
            unit=" nats",
            accuracy={
                m: _mean_over_seeds(source[source.model == m], classes, _balanced_accuracy) for m in models
            },
            information={
                m: _mean_over_seeds(target[target.model == m], classes, _information) for m in models
            },
            shares={m: _shares(target[target.model == m], classes) for m in models},
            expected={c: float(expected.get(c, 0.0)) for c in classes},
            num_patients=source.patient.nunique(),
            loss_is_clear=lambda m: _loss_is_clear(source, m, reference, classes),
        ),
        reference,
    )


def recommend_masks(
    evidence: pd.DataFrame, structures: tuple[str, ...], *, reference: str = "source_only"
) -> Decision:
    """As `recommend`, for segmentation: from rows of one case, model and seed that no mask of the target enters.

    Args:
        evidence: columns `case, patient, domain, split, model, seed`, `dice` (mean over structures, of source cases),
            `certainty` and `share_<structure>`, as `medtl.prediction.mask_writer` gathers them, and
            `expected_<structure>`, the share of the source's masks.
        structures: their names.
        reference: the model that was not adapted.
    """
    source = evidence[(evidence.domain == "source") & (evidence.split == "validation")]
    target = evidence[evidence.domain == "target"]
    models = [reference, *sorted(set(evidence.model) - {reference})]
    own = source[source.model == reference]
    return _decide(
        _Figures(
            source_figure="Dice on source validation (mean over structures and cases)",
            target_figure="Certainty of the target's predictions (0 to 1)",
            measure="Dice",
            most="are the most certain",
            more="are more certain",
            unit="",
            accuracy={m: float(source[source.model == m].dice.mean()) for m in models},
            information={m: float(target[target.model == m].certainty.mean()) for m in models},
            shares={
                m: {c: float(target[target.model == m][f"share_{c}"].mean()) for c in structures}
                for m in models
            },
            expected={c: float(own[f"expected_{c}"].mean()) for c in structures},
            num_patients=source.patient.nunique(),
            loss_is_clear=lambda m: _dice_loss_is_clear(source, m, reference),
        ),
        reference,
    )


@dataclass(frozen=True)
class _Figures:
    """Everything that is known about each model without a label of the target."""

    source_figure: str
    target_figure: str
    measure: str
    most: str
    more: str
    unit: str
    accuracy: dict[str, float]
    information: dict[str, float]
    shares: dict[str, dict[str, float]]
    expected: dict[str, float]
    num_patients: int
    loss_is_clear: Callable[[str], bool]


def _decide(figures: _Figures, reference: str) -> Decision:
    shares, expected, information = figures.shares, figures.expected, figures.information
    models, classes = list(figures.accuracy), tuple(expected)
    distance = {m: 0.5 * sum(abs(shares[m][c] - expected[c]) for c in classes) for m in models}
    vetoes: dict[str, str] = {}
    unclear: dict[str, str] = {}
    for m in models[1:]:
        loss = figures.accuracy[reference] - figures.accuracy[m]
        if loss > MAX_SOURCE_LOSS:
            text = f"it lost {loss:.2f} of {figures.measure} on source validation"
            if figures.loss_is_clear(m):
                vetoes[m] = text
            else:
                unclear[m] = (
                    f"{text}, but {figures.num_patients} patients leave doubt that this is more than is tolerated"
                )
        lost = [
            c
            for c in classes
            if shares[m][c] < LOST_CLASS * expected[c] and shares[m][c] <= shares[reference][c]
        ]
        if lost:
            vetoes.setdefault(m, f"it hardly predicts {', '.join(lost)} at the target")
        over = [
            c
            for c in classes
            if expected[c] and shares[m][c] > max(TOO_MUCH * expected[c], shares[reference][c])
        ]
        if over:
            times = max(shares[m][c] / expected[c] for c in over)
            vetoes.setdefault(
                m, f"it predicts {', '.join(over)} at the target {times:.0f} times as much as the source has"
            )
        if information[m] == information[reference] and distance[m] == distance[reference]:
            vetoes.setdefault(m, "it predicts the same as the reference")
    least = {m: information[m] - (0.0 if m == reference else MIN_GAIN) for m in models if m not in vetoes}
    kept = max(least, key=lambda m: (least[m], m == reference))
    evidence = (
        Evidence(
            figures.source_figure,
            figures.accuracy,
            _text({**vetoes, **unclear}, figures.measure, "no model lost much"),
        ),
        Evidence(
            figures.target_figure, information, f"highest: {max(information, key=lambda m: information[m])}"
        ),
        Evidence(SHARE_FIGURE, distance, _text(vetoes, "at the target", "no class was lost")),
        *(
            Evidence(
                f"Predicted share of {c} at the target",
                {m: shares[m][c] for m in models},
                f"source: {expected[c]:.{2 if expected[c] >= 0.05 else 4}f}",
            )
            for c in classes
        ),
    )
    return Decision(kept, _reason(kept, reference, vetoes, unclear, figures), evidence)


def _reason(
    kept: str,
    reference: str,
    vetoes: Mapping[str, str],
    unclear: Mapping[str, str],
    known: _Figures,
) -> str:
    information = known.information
    others = ", ".join(f"{m} {v:.2f}" for m, v in information.items() if m != kept)
    figures = f"({information[kept]:.2f}{known.unit}; {others})"
    if kept == reference:
        why = [f"{m} is not kept: {text}" for m, text in vetoes.items()]
        if len(vetoes) < len(information) - 1:
            why.append(f"no adapted model's predictions for the target {known.more} {figures}")
        text = "; ".join(why)
        return f"{text.replace('no adapted', 'No adapted') if text.startswith('no') else text}."
    source = unclear.get(kept, "it kept its accuracy on source validation")
    return (
        f"Its predictions for the target {known.most} {figures}; {source}; it lost no class. "
        "No label of the target was used, so this is evidence, not proof."
    )


def _text(vetoes: Mapping[str, str], part: str, otherwise: str) -> str:
    return "; ".join(f"{m}: {why}" for m, why in vetoes.items() if part in why) or otherwise


def _logits(rows: pd.DataFrame, classes: tuple[str, ...]) -> NDArray[np.float64]:
    return rows[[f"logit_{c}" for c in classes]].to_numpy(np.float64)


def _shares(rows: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    chosen = _logits(rows, classes).argmax(1)
    return {c: float((chosen == k).mean()) for k, c in enumerate(classes)}


def _balanced_accuracy(rows: pd.DataFrame, classes: tuple[str, ...]) -> float:
    chosen = np.asarray(classes)[_logits(rows, classes).argmax(1)]
    return float(balanced_accuracy_score(rows.label, chosen))


def _loss_is_clear(
    source: pd.DataFrame, model: str, reference: str, classes: tuple[str, ...], replicates: int = 1000
) -> bool:
    """Whether the model's loss against the reference exceeds the margin in 95 % of resamples of the patients.

    Balanced accuracy is a ratio of sums over patients, so resampling is one product of counts and sums.
    """
    patients = np.unique(source.patient)
    drawn = np.random.default_rng(0).multinomial(
        len(patients), np.full(len(patients), 1 / len(patients)), replicates
    )

    def replicated(name: str) -> NDArray[np.float64]:
        rows = source[source.model == name]
        place = np.searchsorted(patients, rows.patient)
        hits = np.asarray(classes)[_logits(rows, classes).argmax(1)] == rows.label
        sums = np.zeros((2, len(classes), len(patients)))
        for k, c in enumerate(classes):
            np.add.at(sums[0, k], place, (rows.label == c) & hits)
            np.add.at(sums[1, k], place, rows.label == c)
        right, all_ = np.einsum("bp,skp->sbk", drawn, sums)
        recalls = np.divide(right, all_, out=np.full_like(right, np.nan), where=all_ > 0)
        return np.asarray(np.nanmean(recalls, axis=1))

    return bool(np.quantile(replicated(reference) - replicated(model), 0.05) > MAX_SOURCE_LOSS)


def _dice_loss_is_clear(source: pd.DataFrame, model: str, reference: str, replicates: int = 1000) -> bool:
    """As `_loss_is_clear`, for the mean Dice of cases."""
    means = {m: source[source.model == m].groupby("case").dice.mean() for m in (model, reference)}
    loss = (means[reference] - means[model]).dropna()
    owner = source.drop_duplicates("case").set_index("case").patient.reindex(loss.index)
    sums = loss.groupby(owner).agg(["sum", "count"]).to_numpy()
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), replicates)
    total, count = (drawn @ sums).T
    return bool(np.quantile(total / count, 0.05) > MAX_SOURCE_LOSS)


def _information(rows: pd.DataFrame, classes: tuple[str, ...]) -> float:
    """Entropy of the mean prediction less the mean entropy of the predictions."""
    log_p = log_softmax(_logits(rows, classes), axis=1)
    mean = np.exp(log_p).mean(0)
    return float(-(mean * np.log(mean.clip(1e-12))).sum() + (np.exp(log_p) * log_p).sum(1).mean())


def _mean_over_seeds(rows: pd.DataFrame, classes: tuple[str, ...], figure: Any) -> float:
    return float(np.mean([figure(r, classes) for _, r in rows.groupby("seed")]))
