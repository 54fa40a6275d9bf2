"""Predictions of a model for cases, as rows of the predictions table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from medtl import __version__
from medtl.adapters.base import Adapter
from medtl.adapters.norm import modes_kept
from medtl.adapters.test_time import TestTimeAdapter
from medtl.checkpoints import load_weights
from medtl.data.batch import Batch, collate
from medtl.data.dataset import CaseDataset
from medtl.data.preprocess import Preprocess
from medtl.data.table import Case
from medtl.errors import CheckpointError
from medtl.labelmap import LabelMap
from medtl.models import Classifier, Segmenter, build_classifier, build_segmenter


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
        adapter: of any kind.
        data: cases of the target, without augmentation and labels.
        batch_size: cases at once.
        device: where to compute; by default a GPU if there is one.

    Returns:
        (N, K) float64, in the order of `data`.

    Raises:
        DataError: a group of one case, and a model whose BatchNorm cannot adapt to one.
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


def model_header(
    adapter: Adapter,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    labels: LabelMap | None = None,
    patch: Sequence[int] | None = None,
    hparams: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `load_trained` needs beside the tensors, as JSON values.

    Args:
        adapter: what is trained.
        classes: names in the order of the logits.
        preprocess: of the scans.
        labels: values in masks, for segmentation.
        patch: size of the windows, for segmentation.
        hparams: of a method that adapts at test time: prediction adapts again.
    """
    method, model = type(adapter).__module__.rpartition(".")[2].removeprefix("medtl_method_"), adapter.model
    header: dict[str, Any] = {
        "kind": "segmenter" if isinstance(model, Segmenter) else "classifier",
        "version": __version__,
        "method": method,
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "model": model.spec() if isinstance(model, Classifier | Segmenter) else None,
    }
    if labels is not None:
        header |= {"labels": labels.to_dict(), "patch": list(patch or ())}
    if adapter.test_time:
        header["test_time"] = dict(hparams or {})
    return header


@dataclass(frozen=True)
class Trained:
    """A model of a finished run, as `load_trained` reads it.

    Attributes:
        model: in eval mode.
        classes: names in the order of the logits.
        preprocess: of the scans.
        header: all that was written with the weights.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    header: dict[str, Any]

    @property
    def labels(self) -> LabelMap | None:
        """What the values of masks mean; None for a classifier."""
        if "labels" not in self.header:
            return None
        # The order of classes is the network's; that of a JSON object is nobody's promise.
        return LabelMap.from_dict(self.header["labels"]).select(self.classes[1:])


def load_trained(path: Path) -> Trained:
    """Rebuilds a model from `model.safetensors` alone: its header says what it is.

    Raises:
        CheckpointError: not a model of medtl, or tensors that do not fit its header.
    """
    header, weights = load_weights(path)
    try:
        spec = dict(header["model"])
        build = build_segmenter if header["kind"] == "segmenter" else build_classifier
        model: nn.Module = build(spec.pop("encoder"), spec.pop("num_classes"), weights=None, **spec)
        model.load_state_dict(weights)
        return Trained(
            model.eval(), tuple(header["classes"]), Preprocess.from_dict(header["preprocess"]), header
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} does not describe a model of this version of medtl ({type(error).__name__}). "
            "Expected: a model.safetensors that `medtl run` wrote."
        ) from error
