"""Features of scans, computed once by a frozen encoder and used many times.

train = extract_features(model.encoder, cohort.dataset("source", "train", with_labels=True), folder)
fit(build_strategy("probe", model), train, folder=...)          # seconds, not minutes
feature_table(train).to_csv("features.csv")                     # for scikit-learn or any other tool
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from medtl.adapters.norm import modes_kept
from medtl.data.batch import Batch, collate
from medtl.data.dataset import CaseDataset
from medtl.data.table import Case
from medtl.errors import ConfigError, DataError
from medtl.files import atomic_write
from medtl.inference import default_device
from medtl.models.classifier import encode_slices
from medtl.models.encoder import Encoder

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the kept files: a change makes older ones unreachable."""
SHARD = 512
"""Images, or slices of volumes, in a file: what a killed extraction loses at most."""


class FeatureDataset(Dataset[Batch]):
    """Features in the place of images: `fit` and `predict_cases` take it as they take a `CaseDataset`.

    Args:
        features: (N, V, F), or (N, V, D, F) of volumes with D slices; V views of each case, the first not augmented.
        cases: N cases.
        classes: names of the classes.
        labels: N class indices, or None.
        sites: names of the sites; by default those of the cases, sorted.

    Attributes:
        key: digest of what the features were made from; empty if that is not known.
    """

    def __init__(
        self,
        features: Tensor,
        cases: Sequence[Case],
        *,
        classes: Sequence[str],
        labels: Sequence[int] | None = None,
        sites: Sequence[str] | None = None,
        key: str = "",
    ) -> None:
        if features.ndim not in (3, 4) or len(features) != len(cases):
            raise DataError(
                f"Features of {len(cases)} cases are (N, V, F) or (N, V, D, F) with N = {len(cases)}; got "
                f"{tuple(features.shape)}."
            )
        self.features = features
        self.cases = tuple(cases)
        self.classes = tuple(classes)
        self._labels = None if labels is None else tuple(labels)
        self.sites = tuple(sites) if sites is not None else tuple(sorted({case.site for case in cases}))
        self.key = key
        self.epoch = 0
        self._label = None if self._labels is None else torch.tensor(self._labels)
        self._site = torch.tensor([self.sites.index(case.site) for case in self.cases])

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each case, or None."""
        return self._labels

    def plain(self) -> FeatureDataset:
        """The same cases, each by its view without augmentation."""
        return FeatureDataset(
            self.features[:, :1],
            self.cases,
            classes=self.classes,
            labels=self.labels,
            sites=self.sites,
            key=self.key,
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch: the views are taken in turn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Batch:
        batch = self.__getitems__([index])
        return Batch(
            image=batch.image[0],
            label=None if batch.label is None else batch.label[0],
            index=None if batch.index is None else batch.index[0],
            site=None if batch.site is None else batch.site[0],
        )

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch at once: the loader asks for it, and `collate` leaves it as it is."""
        places = torch.tensor([int(i) for i in indices])
        views = self.features.shape[1]
        # Another view in each epoch, and in each repeat of a case within one.
        view = torch.tensor([(self.epoch + getattr(i, "repeat", 0)) % views for i in indices])
        return Batch(
            image=self.features[places, view],
            label=None if self._label is None else self._label[places],
            index=places,
            site=self._site[places],
        )


@torch.no_grad()
def extract_features(
    encoder: Encoder,
    data: CaseDataset,
    folder: Path,
    *,
    views: int = 1,
    depth: str = "last",
    batch_size: int = 64,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureDataset:
    """Encodes every case once a view, and keeps the result: what is there already is not computed again.

    A view is kept by itself, so that data sets which differ in augmentation, seed or number of views share those that
    they have in common. Features are float32: in half precision the logits of a trained probe (standard deviation 9)
    moved by 1e-3, which is 50 times what another batch size does, and the scans in the cache take more room anyway.

    Args:
        encoder: is put into eval mode meanwhile.
        data: cases with their augmentation, which views 1, 2, ... show (that of epochs 1, 2, ...); view 0 is plain.
        folder: of all extractions; each view has a subfolder named by a digest of the encoder's weights, the
            preprocessed scans, their order and, beyond view 0, the augmentation and its seed.
        views: V.
        depth: `last`, or a name that `Encoder.features_at` gives, such as `stage3`.
        batch_size: images or slices at once.
        device: where to compute; by default a GPU if there is one.
        progress: called with (done, all) cases.

    Raises:
        ConfigError: no such depth, or several views of data without augmentation, which would all be the same.
    """
    check_views(views, data.augment)
    keys = _digests(encoder, data, views, depth)
    device = device or default_device()
    plain, epoch = data.plain(), data.epoch
    parts: list[list[Tensor]] = []
    depths = data.cache.preprocess.num_slices or 1
    size = max(1, SHARD // depths)
    with modes_kept(encoder):
        encoder.to(device).eval()
        try:
            for view in range(views):
                shown = data if view else plain
                shown.set_epoch(view)
                parts.append([])
                for shard in range(math.ceil(len(data) / size)):
                    places = range(shard * size, min((shard + 1) * size, len(data)))
                    path = folder / keys[view] / f"{shard:05d}.safetensors"
                    features = _read(path, len(places))
                    if features is None:
                        loader = DataLoader(
                            Subset(shown, places), max(1, batch_size // depths), collate_fn=collate
                        )
                        batches = [_encode(encoder, batch.image.to(device), depth) for batch in loader]
                        features = torch.cat(batches)
                        _write(path, features)
                    parts[-1].append(features)
                    if progress is not None:
                        progress(view * len(data) + places.stop, views * len(data))
        finally:
            data.set_epoch(epoch)
    return FeatureDataset(
        torch.stack([torch.cat(shards) for shards in parts], dim=1),
        data.cases,
        classes=data.classes,
        labels=data.labels,
        sites=data.sites,
        key=keys[-1],
    )


def check_views(views: int, augment: str) -> None:
    """Raises ConfigError for no view, and for several that would all be the same."""
    if views < 1 or (views > 1 and augment == "none"):
        raise ConfigError(
            f"Got {views} views with augmentation {augment!r}; expected 1 view, the scans as they are, or more with "
            "augmentation standard or strong."
        )


def feature_table(data: FeatureDataset) -> pd.DataFrame:
    """One row a case and view: `case, patient, site, domain, split, label, view`, then `f0000`, `f0001`, ...

    Features of a volume are the mean over its slices.
    """
    features = data.features.mean(2) if data.features.ndim == 4 else data.features
    num, views, width = features.shape
    columns = {
        "case": [c.case for c in data.cases],
        "patient": [c.patient for c in data.cases],
        "site": [c.site for c in data.cases],
        "domain": [c.domain for c in data.cases],
        "split": [c.split for c in data.cases],
        "label": [c.label or "" for c in data.cases],
    }
    about = pd.DataFrame({k: np.repeat(np.array(v, dtype=object), views) for k, v in columns.items()})
    about["view"] = np.tile(np.arange(views), num)
    names = [f"f{i:04d}" for i in range(width)]
    return pd.concat([about, pd.DataFrame(features.flatten(0, 1).numpy(), columns=names)], axis=1)


def knn_logits(train: FeatureDataset, test: FeatureDataset, k: int = 5) -> NDArray[np.float64]:
    """Log-probabilities of the classes from the k nearest training cases by cosine, one vote smoothed over all classes.

    Every view of a training case votes; features of a volume are the mean over its slices.

    Returns:
        (N, K) of the test cases.

    Raises:
        DataError: the training cases have no labels, or fewer than k.
    """
    if train.labels is None:
        raise DataError("Nearest neighbours vote by their labels, and the training cases have none.")
    x, y = _vectors(train.features).flatten(0, 1), np.repeat(train.labels, train.features.shape[1])
    if not 1 <= k <= len(x):
        raise DataError(f"There are {len(x)} training vectors, too few for k = {k}.")
    nearest = KNeighborsClassifier(n_neighbors=k, metric="cosine").fit(x.numpy(), y)
    votes = np.zeros((len(test), len(train.classes)))
    votes[:, nearest.classes_] = nearest.predict_proba(_vectors(test.features)[:, 0].numpy()) * k
    return np.asarray(np.log((votes + 1 / votes.shape[1]) / (k + 1)))


def _vectors(features: Tensor) -> Tensor:
    return features.mean(2) if features.ndim == 4 else features


def _encode(encoder: Encoder, image: Tensor, depth: str) -> Tensor:
    if depth == "last":
        return encode_slices(encoder, image).float().cpu()
    slices = image.transpose(1, 2).flatten(0, 1) if image.ndim == 5 else image
    found = encoder.features_at(slices)
    if depth not in found:
        raise ConfigError(
            f"Encoder {encoder.name} has no depth {depth!r}. There are: last, {', '.join(found)}."
        )
    features = found[depth].float().cpu()
    return features.view(len(image), -1, features.shape[1]) if image.ndim == 5 else features


def _digests(encoder: Encoder, data: CaseDataset, views: int, depth: str) -> list[str]:
    """Of each view, of everything that its features depend on; no name is in it."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps([FORMAT, encoder.name, depth]).encode())
    for case in data.cases:
        assert case.item is not None
        digest.update(data.cache.key(case.item).encode())
    digests = [digest]
    for view in range(1, views):
        digests.append(digest.copy())
        digests[-1].update(json.dumps([data.augment, data.seed, data.stream, view]).encode())
    return [d.hexdigest()[:32] for d in digests]


def _write(path: Path, features: Tensor) -> None:
    tensor = features.contiguous()
    check = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    atomic_write(path, save({"features": tensor}, metadata={"sha256": check}))


def _read(path: Path, num: int) -> Tensor | None:
    """What was kept, if it is whole."""
    if not path.is_file():
        return None
    with contextlib.suppress(SafetensorError, KeyError, OSError), safe_open(path, framework="pt") as file:
        features: Tensor = file.get_tensor("features")
        check = hashlib.sha256(features.numpy().tobytes()).hexdigest()
        if len(features) == num and (file.metadata() or {}).get("sha256") == check:
            return features
    logger.warning("Kept features are damaged and are computed again: %s", path.name)
    return None
