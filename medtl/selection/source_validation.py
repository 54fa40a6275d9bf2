"""Score: accuracy on source validation, and whether a model lost more of it than is tolerated."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from medtl.selection.information import logits_of

MAX_SOURCE_LOSS = 0.10
"""How much balanced accuracy on source validation a model may lose against the reference.

A veto requires that more was lost in 95 % of patient resamples (one-sided): validation sets are small, adaptation
always costs the source something, and a few cases must not decide.
"""


def validation_accuracy(rows: pd.DataFrame, classes: tuple[str, ...]) -> float:
    """Balanced accuracy of the most probable class."""
    chosen = np.asarray(classes)[logits_of(rows, classes).argmax(1)]
    return float(balanced_accuracy_score(rows.label, chosen))


def loss_is_clear(
    source: pd.DataFrame, model: str, reference: str, classes: tuple[str, ...], replicates: int = 1000
) -> bool:
    """Whether the model's loss against the reference exceeds the margin in 95 % of resamples of the patients.

    Balanced accuracy is a ratio of sums over patients, so resampling is one product of counts and sums.
    """
    # In the order of cases: the names are pseudonyms, and other ones in every project.
    patients = pd.Index(source.sort_values("case", kind="stable").patient.unique())
    drawn = np.random.default_rng(0).multinomial(
        len(patients), np.full(len(patients), 1 / len(patients)), replicates
    )

    def replicated(name: str) -> NDArray[np.float64]:
        rows = source[source.model == name]
        place = patients.get_indexer(rows.patient)
        hits = np.asarray(classes)[logits_of(rows, classes).argmax(1)] == rows.label
        sums = np.zeros((2, len(classes), len(patients)))
        for k, c in enumerate(classes):
            np.add.at(sums[0, k], place, (rows.label == c) & hits)
            np.add.at(sums[1, k], place, rows.label == c)
        right, all_ = np.einsum("bp,skp->sbk", drawn, sums)
        recalls = np.divide(right, all_, out=np.full_like(right, np.nan), where=all_ > 0)
        return np.asarray(np.nanmean(recalls, axis=1))

    return bool(np.quantile(replicated(reference) - replicated(model), 0.05) > MAX_SOURCE_LOSS)


def dice_loss_is_clear(source: pd.DataFrame, model: str, reference: str, replicates: int = 1000) -> bool:
    """As `loss_is_clear`, for the mean Dice of cases."""
    means = {m: source[source.model == m].groupby("case").dice.mean() for m in (model, reference)}
    loss = (means[reference] - means[model]).dropna()
    owner = source.drop_duplicates("case").set_index("case").patient.reindex(loss.index)
    sums = loss.groupby(owner, sort=False).agg(["sum", "count"]).to_numpy()
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), replicates)
    total, count = (drawn @ sums).T
    return bool(np.quantile(total / count, 0.05) > MAX_SOURCE_LOSS)
