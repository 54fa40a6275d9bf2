"""Predicts cases and returns the rows of the predictions table."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.data.cases.table import Case
from medtl.data.tensors.batch import Batch, collate
from medtl.data.tensors.dataset import CaseDataset
from medtl.errors import DataError, NotFiniteError
from medtl.models.device import default_device
from medtl.models.parts import modes_kept
from medtl.prediction.groups import begin_group, end_group, groups_of, unadapted, unadapted_remark

logger = logging.getLogger(__name__)


@torch.no_grad()
def predict_cases(
    model: nn.Module, data: Dataset[Batch], *, batch_size: int = 32, device: torch.device | None = None
) -> NDArray[np.float64]:
    """Logits of every case, in the order of `data`.

    Args:
        model: returns `Output(logits, features)`.
        data: cases without augmentation.
        batch_size: cases at once.
        device: where to compute; by default a GPU if there is one.

    Returns:
        (N, K) float64.
    """
    device = device or default_device()
    parts = []
    with modes_kept(model):
        model.to(device).eval()
        for batch in DataLoader(data, batch_size=batch_size, collate_fn=collate):
            parts.append(model(batch.image.to(device)).logits.double().cpu().numpy())
    return np.concatenate(parts)


def predict_adapted(
    adapter: Adapter,
    data: CaseDataset,
    *,
    batch_size: int = 32,
    device: torch.device | None = None,
    must_adapt: bool = True,
) -> NDArray[np.float64]:
    """As `predict_cases` with the adapter's predictor; a test-time method first adapts to each group of cases.

    For each group (case, patient, site) the adapter is reset, sees the group's cases in batches of even size, and
    predicts them afterwards. With `reset=never` it goes on from batch to batch. A group of one image, which a
    classifier with BatchNorm cannot adapt to, is predicted as a finished run left the adapter, else unadapted: a
    warning says so.

    Args:
        adapter: any adapter.
        data: cases of the target, without augmentation and labels.
        batch_size: cases at once.
        device: where to compute; by default a GPU if there is one.
        must_adapt: whether it is an error if no group can be adapted to.

    Returns:
        (N, K) float64, in the order of `data`.

    Raises:
        DataError: no group could be adapted to, and no run kept a state: the method would change nothing.
    """
    if not isinstance(adapter, TestTimeAdapter):
        return predict_cases(adapter.predictor, data, batch_size=batch_size, device=device)
    device = device or default_device()
    adapter.to(device)
    logits: NDArray[np.float64] | None = None
    alone = adapted = 0
    for number, places in enumerate(groups_of(adapter, data.cases)):
        images = [
            collate([data[i] for i in part.tolist()]).image
            for part in np.array_split(places, math.ceil(len(places) / batch_size))
        ]
        if all(adapter.can_adapt(image) for image in images):
            begin_group(adapter, first=number == 0)
            for image in images:
                adapter.adapt_batch(image.to(device))
            adapted += 1
            end_group(adapter)
        else:
            unadapted(adapter)
            alone += len(places)
        found = predict_cases(adapter.predictor, Subset(data, places), batch_size=batch_size, device=device)
        logits = np.empty((len(data.cases), found.shape[1])) if logits is None else logits
        logits[places] = found
    if alone:
        if must_adapt and not adapted and adapter.kept is None:
            raise DataError(unadapted_remark(adapter, alone))
        adapter.remarks.append(unadapted_remark(adapter, alone))
        logger.warning(adapter.remarks[-1])
    adapter.reset()
    return np.empty((0, 0)) if logits is None else logits


def prediction_rows(
    cases: Sequence[Case],
    scores: NDArray[np.float64],
    classes: Sequence[str],
    model: str,
    seed: int | None = None,
    *,
    kind: str = "logit",
) -> pd.DataFrame:
    """Rows of the predictions table.

    Args:
        cases: N cases.
        scores: (N, K) logits or probabilities.
        classes: K names.
        model: name of the model.
        seed: its training seed, or None.
        kind: `logit` or `prob`.

    Raises:
        NotFiniteError: scores that are no numbers.
    """
    if not np.isfinite(scores).all():
        failed = [c.case for c, row in zip(cases, scores, strict=True) if not np.isfinite(row).all()]
        raise NotFiniteError(
            f"{model} gives no number for {len(failed)} of {len(cases)} cases, such as {failed[0]}: its training has "
            "diverged (lower --lr), or that scan is damaged (look at it with `medtl inspect`)."
        )
    groups = sorted({g for c in cases for g in c.groups})
    frame = pd.DataFrame(
        [
            {
                "case": c.case,
                "patient": c.patient,
                "split": c.split,
                "domain": c.domain,
                "site": c.site,
                "model": model,
                "seed": seed,
                "label": c.label or "",
                **{g: c.groups.get(g, "") for g in groups},
            }
            for c in cases
        ]
    )
    if seed is None:
        frame = frame.drop(columns="seed")
    return pd.concat([frame, pd.DataFrame(scores, columns=[f"{kind}_{c}" for c in classes])], axis=1)
