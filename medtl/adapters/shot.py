"""Source-free adaptation: needs a trained model and the target's scans, not the source's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters.contract.adapter import Adapter, StartsFrom, Statistic
from medtl.adapters.contract.norm import reestimate_statistics
from medtl.adapters.contract.parts import classes_of, entropy, head_of, modes_kept, per_class, pseudo_labels
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.strategies.contract.strategy import Strategy

Prior = Literal["auto", "uniform", "predicted"]


class SHOT(Adapter):
    """Adapts a trained model's features to its frozen head, without source data (SHOT: Liang et al. 2020).

    The loss maximises information: each prediction becomes confident, while the mean prediction stays close to a
    `prior` over classes. In classification, each case also learns a pseudo-label, which is refreshed every epoch from
    the whole target; segmentation has no pseudo-labels. Train the source model with label smoothing (0.1 in the paper).
    BatchNorm starts from the target's statistics, so that the first pseudo-labels and class shares do not depend on
    the source's.

    Args:
        model: trained on the source; its head is frozen.
        prior: class shares to stay close to: `uniform` (the paper's choice: maximises the entropy of the mean
            prediction), `predicted` (the shares that the model predicts at the start, for imbalanced classes), or
            `auto`: uniform for cases, predicted for voxels, most of which are background.
        diversity_weight: weight of the prior. Cases need a large batch for it; voxels are always many.
        pseudo_weight: weight of the pseudo-labels' cross-entropy; classification only.
        threshold: a class predicted for this many target cases or fewer gets no pseudo-labels.
        encoder_lr: learning rate of the encoder, as a multiple of that of the layers between encoder and head.
        norm, statistics, strategy: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"target", "index"})
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "segmentation"})
    why_not: ClassVar[str] = "its classes are mutually exclusive"
    norms: ClassVar[frozenset[str]] = frozenset({"separate", "frozen"})
    starts_from: ClassVar[StartsFrom] = "source_only"
    aligns: ClassVar[bool] = True
    shares: Tensor
    started: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        prior: Prior = "auto",
        diversity_weight: float = 1.0,
        pseudo_weight: float = 0.3,
        threshold: int = 0,
        encoder_lr: float = 0.1,
        **common: Unpack[Statistic],
    ) -> None:
        super().__init__(model, **common)
        if prior not in get_args(Prior) or min(diversity_weight, pseudo_weight, threshold) < 0:
            raise ConfigError(
                f"SHOT: prior is {prior!r}, the weights are {diversity_weight} and {pseudo_weight}, the threshold is "
                f"{threshold}; expected a prior of {', '.join(get_args(Prior))}, and numbers of at least 0."
            )
        self.prior, self.diversity_weight, self.pseudo_weight = prior, diversity_weight, pseudo_weight
        self.threshold, self.encoder_lr = threshold, encoder_lr
        num_classes = classes_of(model, "SHOT")
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("started", torch.tensor(False))
        self._labels: dict[int, int] = {}  # of an epoch, by place: made from the weights at its start

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the information-maximisation loss and the pseudo-labels' cross-entropy; uses no source."""
        target = self._given(target, "target")
        if not self.started:
            raise ConfigError(
                'SHOT needs on_epoch_start({"target": batches}) before the first step of each epoch.'
            )
        logits = self.model(target.image).logits.float()
        shares = per_class(torch.softmax(logits, dim=1)).mean(dim=0)
        certainty = entropy(logits)
        diversity = (shares * (shares.clamp(min=1e-8).log() - self.shares.clamp(min=1e-8).log())).sum()
        loss = certainty + self.diversity_weight * diversity
        losses = {"entropy": certainty.detach(), "diversity_loss": diversity.detach()}
        if logits.ndim == 2 and self.pseudo_weight:
            pseudo = F.cross_entropy(logits, self._label_of(target).to(logits.device))
            loss = loss + self.pseudo_weight * pseudo
            losses["pseudo_loss"] = pseudo.detach()
        return {"loss": loss, **losses}

    def _label_of(self, target: Batch) -> Tensor:
        places = [] if target.index is None else target.index.tolist()
        if not places or not all(place in self._labels for place in places):
            raise DataError(
                "SHOT finds a case's pseudo-label by its position in the target's data set (index), which is missing "
                "here or was missing when the epoch started. Use the same data set for both."
            )
        return torch.tensor([self._labels[place] for place in places])

    def on_epoch_start(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Refreshes the pseudo-labels over the whole target; the first time also the statistics and class shares."""
        first = not bool(self.started)
        if first and self.norm != "frozen":
            reestimate_statistics(self.model, loaders["target"])
        if first or self.pseudo_weight:
            self._look(loaders["target"], first)
        self.started.fill_(True)

    @torch.no_grad()
    def _look(self, batches: Iterable[Batch], first: bool) -> None:
        """Passes once over the target in eval mode, in order."""
        features, probabilities, index = [], [], []
        total, count, maps = torch.zeros_like(self.shares), 0, False
        with modes_kept(self.model):
            self.model.eval()
            for batch in batches:
                output = self.model(batch.image.to(self.shares.device))
                p = torch.softmax(output.logits.float(), dim=1)
                maps = p.ndim > 2
                if maps and not first:
                    return
                total += per_class(p).mean(dim=0) * len(p)
                count += len(p)
                if not maps and batch.index is not None:
                    features.append(output.features.float())
                    probabilities.append(p)
                    index += batch.index.tolist()
        if count == 0:
            raise DataError("SHOT learns from the target's scans, and there are none.")
        if first and self.prior != "uniform" and (maps or self.prior == "predicted"):
            self.shares.copy_(total / count)
        if features and self.pseudo_weight:
            labels = pseudo_labels(torch.cat(features), torch.cat(probabilities), self.threshold)
            self._labels = dict(zip(index, labels.tolist(), strict=True))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The encoder (or the whole model if it names none) at `lr * encoder_lr`, the rest at `lr`; no head."""
        return self.strategy.param_groups(lr, lambda part: self.encoder_lr if part.pretrained else 1.0)

    def hold(self, strategy: Strategy) -> None:
        """As `Adapter.hold`; the head is frozen whatever the strategy."""
        strategy.keep_frozen(head_of(self.model, "SHOT"))
        super().hold(strategy)

    def train(self, mode: bool = True) -> SHOT:
        """Sets the mode; the head stays in eval mode."""
        super().train(mode)
        head_of(self.model, "SHOT").eval()
        return self
