"""Predicts cases and returns the rows of the predictions table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.norm import modes_kept
from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.data.cases.table import Case
from medtl.data.tensors.batch import Batch, collate
from medtl.data.tensors.dataset import CaseDataset
from medtl.models.device import default_device


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
    adapter: Adapter, data: CaseDataset, *, batch_size: int = 32, device: torch.device | None = None
) -> NDArray[np.float64]:
    """As `predict_cases` with the adapter's model; a test-time method first adapts to each patient or site.

    For each group the adapter is reset, sees the group's cases in batches of even size, and predicts them afterwards.

    Args:
        adapter: any adapter.
        data: cases of the target, without augmentation and labels.
        batch_size: cases at once.
        device: where to compute; by default a GPU if there is one.

    Returns:
        (N, K) float64, in the order of `data`.

    Raises:
        DataError: a group has one case, and the model's BatchNorm cannot adapt to one.
    """
    if not isinstance(adapter, TestTimeAdapter):
        return predict_cases(adapter.model, data, batch_size=batch_size, device=device)
    device = device or default_device()
    adapter.to(device)
    keys = [case.site if adapter.reset_per == "site" else case.patient for case in data.cases]
    logits: NDArray[np.float64] | None = None
    for key in dict.fromkeys(keys):
        places = np.flatnonzero(np.array(keys) == key)
        adapter.reset()
        for part in np.array_split(places, math.ceil(len(places) / batch_size)):
            adapter.adapt_batch(collate([data[int(i)] for i in part]).image.to(device))
        found = predict_cases(
            adapter.model, Subset(data, places.tolist()), batch_size=batch_size, device=device
        )
        logits = np.empty((len(keys), found.shape[1])) if logits is None else logits
        logits[places] = found
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
    """
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
