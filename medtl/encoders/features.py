"""Features of scans, computed once by a frozen encoder and reused.

train = extract_features(model.encoder, cohort.dataset("source", "train", with_labels=True), folder)
fit(build_strategy("probe", model), train, folder=...)          # seconds, not minutes
feature_table(train).to_csv("features.csv")                     # for scikit-learn or any other tool
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from medtl.data.cases.table import Case
from medtl.data.tensors.batch import Batch, collate
from medtl.data.tensors.dataset import CaseDataset
from medtl.encoders.featurestore import FeatureStore
from medtl.errors import ConfigError, DataError
from medtl.models.classifier import encode_slices
from medtl.models.device import default_device
from medtl.models.encoder import Encoder
from medtl.models.neighbours import NeighbourHead
from medtl.models.parts import modes_kept

FORMAT = 3
"""Version of the stored files; changing it makes older ones unreachable."""
SHARD = 512
"""Images, or slices of volumes, per file: a killed extraction loses at most this many."""


class FeatureDataset(Dataset[Batch]):
    """Features in place of images: `fit` and `predict_cases` accept it like a `CaseDataset`.

    Args:
        features: (N, V, F), or (N, V, D, F) of volumes with D slices; V views of each case, the first not augmented.
        cases: N cases.
        classes: names of the classes.
        labels: N class indices, or None.
        sites: names of the sites; by default those of the cases, sorted.

    Raises:
        DataError: the features do not have one row per case.
    """

    def __init__(
        self,
        features: Tensor,
        cases: Sequence[Case],
        *,
        classes: Sequence[str],
        labels: Sequence[int] | None = None,
        sites: Sequence[str] | None = None,
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
        self.epoch = 0
        self._label = None if self._labels is None else torch.tensor(self._labels)
        self._site = torch.tensor([self.sites.index(case.site) for case in self.cases])

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Class index of each case, or None."""
        return self._labels

    @property
    def vectors(self) -> Tensor:
        """(N, V, F): the features of images, and the mean over the slices of volumes."""
        return self.features.mean(2) if self.features.ndim == 4 else self.features

    def plain(self) -> FeatureDataset:
        """The same cases, each with its view without augmentation."""
        return FeatureDataset(
            self.features[:, :1],
            self.cases,
            classes=self.classes,
            labels=self.labels,
            sites=self.sites,
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch: the epochs use the views in turn."""
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
        """Returns a whole batch: the loader calls it, and `collate` passes the batch through."""
        places = torch.tensor([int(i) for i in indices])
        views = self.features.shape[1]
        # Each epoch uses another view, and so does each repeat of a case within an epoch.
        view = torch.tensor([(self.epoch + getattr(i, "repeat", 0)) % views for i in indices])
        return Batch(
            image=self.features[places, view],
            label=None if self._label is None else self._label[places],
            index=places,
            site=self._site[places],
        )


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
    """Encodes every view of every case once and stores the result; stored features are not computed again.

    Each view of a case is stored by itself, so that data sets that differ in cases, augmentation, seed or number of
    views share what they have in common. Features are float32: in half precision the logits of a trained probe
    (standard deviation 9) moved by 1e-3, which is 50 times what another batch size does, and the scans in the cache
    take more room anyway.

    Args:
        encoder: the encoder; in eval mode meanwhile.
        data: cases with their augmentation; views 1, 2, ... show that of epochs 1, 2, ..., and view 0 is plain.
        folder: folder of all extractions; see `FeatureStore`. The key is a digest of the encoder's weights, the
            preprocessed scan and, beyond view 0, the augmentation, its seed and the position of the case in the data.
        views: V.
        depth: `last`, or a name that `Encoder.features_at` gives, such as `stage3`.
        batch_size: images or slices at once.
        device: where to compute; by default a GPU if there is one.
        progress: called with (done, total) cases.

    Raises:
        ConfigError: there is no such depth, or several views of data without augmentation, which would be equal.
    """
    check_views(views, data.augment)
    work = _Encoding(encoder, data, folder, batch_size, device)
    if depth != "last":
        known = work.depths()
        if depth not in known:
            raise ConfigError(
                f"Encoder {encoder.name} has no depth {depth!r}. There are: last, {', '.join(known)}."
            )
        depth = "last" if depth == known[-1] else depth
    parts = []
    for view in range(views):
        report = None if progress is None else _shifted(progress, view * len(data), views * len(data))
        parts.append(work.view(view, (depth,), report)[depth])
    return _dataset(data, torch.stack(parts, dim=1))


def extract_depths(
    encoder: Encoder,
    data: CaseDataset,
    folder: Path,
    *,
    batch_size: int = 64,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, FeatureDataset]:
    """As `extract_features` for the plain view, for every depth in one pass.

    Args:
        encoder: the network that computes them.
        data: the cases.
        folder: where features are kept.
        batch_size: images in one batch.
        device: by default the fastest that there is.
        progress: called with the number of cases done and of all.

    Returns:
        Data sets by depth, `stage1` (shallow) first; the last one equals the depth `last` of `extract_features`.
    """
    work = _Encoding(encoder, data, folder, batch_size, device)
    names = work.depths()
    found = work.view(0, (*names[:-1], "last"), progress)
    return dict(zip(names, (_dataset(data, features[:, None]) for features in found.values()), strict=True))


def check_views(views: int, augment: str) -> None:
    """Raises ConfigError if there is no view, or if there are several that would be equal.

    Args:
        views: number of views.
        augment: name of the augmentation.

    Raises:
        ConfigError: see above.
    """
    if views < 1 or (views > 1 and augment == "none"):
        raise ConfigError(
            f"Got {views} views with augmentation {augment!r}; expected 1 view, the scans as they are, or more with "
            "augmentation standard or strong."
        )


def feature_table(data: FeatureDataset) -> pd.DataFrame:
    """One row per case and view: `case, patient, site, domain, split, label, view`, then `f0000`, `f0001`, ...

    Features of a volume are the mean over its slices.

    Args:
        data: the features and their cases.
    """
    features = data.vectors
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

    Args:
        train: the cases that vote.
        test: the cases that are classified.
        k: number of neighbours.

    Returns:
        (N, K) of the test cases.

    Raises:
        DataError: the training cases have no labels, or fewer than k.
    """
    if train.labels is None:
        raise DataError("Nearest neighbours vote with their labels, and the training cases have none.")
    x = train.vectors
    head = NeighbourHead(x.shape[-1], len(train.classes), k)
    head.remember(x.flatten(0, 1), torch.tensor(train.labels).repeat_interleave(x.shape[1]))
    logits = torch.cat([head(part) for part in torch.split(test.vectors[:, 0], 1024)])
    return np.asarray(logits.numpy(), dtype=np.float64)


@contextmanager
def ready(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Within it, the encoder is in eval mode on the device, without gradients; afterwards it is as and where it was."""
    home = next(encoder.parameters()).device
    with modes_kept(encoder), torch.no_grad():
        encoder.to(device).eval()
        try:
            yield
        finally:
            encoder.to(home)


class _Encoding:
    """One encoder on one data set, with its store."""

    def __init__(
        self, encoder: Encoder, data: CaseDataset, folder: Path, batch_size: int, device: torch.device | None
    ) -> None:
        self.encoder, self.data, self.folder = encoder, data, folder
        self.batch_size, self.device = batch_size, device or default_device()
        self.keys = []
        for case in data.cases:
            assert case.item is not None
            self.keys.append(data.cache.key(case.item))
        digest = hashlib.sha256(json.dumps([FORMAT, encoder.name]).encode())
        for name, tensor in encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.digest = digest.hexdigest()

    def depths(self) -> list[str]:
        """Names of all depths, the last one last."""
        with ready(self.encoder, self.device):
            return list(self._encode(self.data.plain()[0].image[None], ()))

    def view(
        self, view: int, depths: Sequence[str], progress: Callable[[int, int], None] | None
    ) -> dict[str, Tensor]:
        """Features (N, F), or (N, D, F) of volumes, by depth; missing ones are computed and stored."""
        data = self.data if view else self.data.plain()
        shown: tuple[str | int, ...] = (data.augment, data.seed, data.stream, view) if view else ()
        keys = [f"{key}-{place}" for place, key in enumerate(self.keys)] if view else self.keys
        stores = {depth: FeatureStore(self.folder / self._name(depth, shown)) for depth in depths}
        found = {depth: store.read(keys) for depth, store in stores.items()}
        missing = [i for i, key in enumerate(keys) if any(key not in kept for kept in found.values())]
        slices = data.cache.preprocess.num_slices or 1
        size, batch_size = max(1, SHARD // slices), max(1, self.batch_size // slices)
        before, done = data.epoch, len(keys) - len(missing)
        if progress is not None and done:
            progress(done, len(keys))
        data.set_epoch(view)
        try:
            with ready(self.encoder, self.device) if missing else nullcontext():
                for start in range(0, len(missing), size):
                    places = missing[start : start + size]
                    new = [keys[place] for place in places]
                    loader = DataLoader(Subset(data, places), batch_size, collate_fn=collate)
                    batches = [self._encode(batch.image, depths) for batch in loader]
                    for depth in depths:
                        features = torch.cat([batch[depth] for batch in batches])
                        stores[depth].add(new, features)
                        found[depth].update(zip(new, features, strict=True))
                    done += len(places)
                    if progress is not None:
                        progress(done, len(keys))
        finally:
            data.set_epoch(before)
        return {depth: torch.stack([kept[key] for key in keys]) for depth, kept in found.items()}

    def _name(self, depth: str, shown: Sequence[str | int]) -> str:
        return hashlib.sha256(json.dumps([self.digest, depth, *shown]).encode()).hexdigest()[:32]

    def _encode(self, image: Tensor, depths: Sequence[str]) -> dict[str, Tensor]:
        """Features of a batch, (B, F) or (B, D, F), on the CPU, by depth; all depths if none is named."""
        image = image.to(self.device)
        if tuple(depths) == ("last",):
            return {"last": encode_slices(self.encoder, image).float().cpu()}
        slices = image.transpose(1, 2).flatten(0, 1) if image.ndim == 5 else image
        found = self.encoder.features_at(slices)
        if depths:
            found["last"] = list(found.values())[-1]
            found = {depth: found[depth] for depth in depths}
        lead = (len(image), image.shape[2]) if image.ndim == 5 else (len(image),)
        return {depth: features.float().cpu().reshape(*lead, -1) for depth, features in found.items()}


def _shifted(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)


def _dataset(data: CaseDataset, features: Tensor) -> FeatureDataset:
    return FeatureDataset(features, data.cases, classes=data.classes, labels=data.labels, sites=data.sites)
