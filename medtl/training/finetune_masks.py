"""Fine-tuning one segmentation network on the source: as `finetuning`, with masks in the place of labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from medtl.adapters.contract.norm import modes_kept
from medtl.data.cohort import Cohort
from medtl.data.tensors.batch import collate
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.spec import Preprocess
from medtl.errors import DataError
from medtl.models import Segmenter, build_segmenter
from medtl.models.device import default_device
from medtl.models.losses.segmentation import SegmentationLoss
from medtl.models.networks import choose_network
from medtl.prediction.segment import segment_cases
from medtl.prediction.trained import model_header
from medtl.runs import Run
from medtl.strategies import Strategy, build_strategy, parse_strategy_hparams
from medtl.training.costs import CostMeter
from medtl.training.finetune import Tuned
from medtl.training.fit import FitConfig, fit
from medtl.training.learning import Kept
from medtl.training.validation import Validation

_TIMED = 4
"""Cases that are segmented to know how long one takes."""


@dataclass(frozen=True, kw_only=True)
class SegmenterTuning:
    """One way of fine-tuning a segmentation network; the fields are called like the recipes' flags.

    Attributes:
        encoder: timm's name.
        network: one of `NETWORKS`, or `auto`.
        weights: as in `build_segmenter`.
        strategy: a name that `medtl list strategies` shows, such as `full`, `head` or `last:2`.
        hparams: hyper-parameters of the strategy.
        loss: by name, see `medtl.models.losses.segmentation`; rare structures are weighted up.
        augment: of the training patches.
    """

    encoder: str
    network: str = "auto"
    weights: str = "imagenet"
    strategy: str = "full"
    hparams: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "dice_ce"
    augment: str = "standard"

    @classmethod
    def of_recipe(cls, config: Any) -> SegmenterTuning:
        """What a recipe's flags say."""
        fields = ("encoder", "network", "weights", "strategy", "loss", "augment")
        hparams = parse_strategy_hparams(config.strategy, config.hparams)
        return cls(**{f: getattr(config, f) for f in fields}, hparams=hparams)

    def __post_init__(self) -> None:
        SegmentationLoss(self.loss)

    def build(self, num_classes: int, preprocess: Preprocess, seed: int) -> Strategy:
        """The untrained network inside its strategy.

        Raises:
            ConfigError: an unknown name, or a strategy or network that the encoder cannot do.
            WeightsError: the weights are absent or of another encoder.
        """
        model = build_segmenter(
            self.encoder,
            num_classes,
            network=choose_network(self.network, preprocess.spatial_dims),
            weights=self.weights,
            in_channels=preprocess.channels,
            seed=seed,
        )
        return build_strategy(self.strategy, model, seed=seed, **self.hparams)

    @property
    def note(self) -> str:
        """What the report says about the way the model was trained."""
        return f"Strategy {self.strategy} on {self.encoder}; loss {self.loss}."


def fine_tune_segmenter(
    way: SegmenterTuning,
    run: Run,
    cohort: Cohort,
    *,
    name: str,
    seed: int,
    config: FitConfig,
    patch: Sequence[int],
) -> tuple[Segmenter, Tuned]:
    """Trains once on the source's training cases.

    Args:
        way: how.
        run: where the model, its metrics and its cost go. What is there already is not trained again.
        cohort: the cases.
        name: of the model, in the predictions and in the run folder.
        seed: of this training.
        config: how to train.
        patch: size of the samples, see `Cohort.patch`.

    Returns:
        The network, and what is known of its training; `rows` are empty: masks are written case by case, by
        `MaskWriter`.

    Raises:
        DataError: there are no training cases.
    """
    labelled: dict[str, Any] = {"with_labels": True, "patch": patch}
    train = cohort.dataset("source", "train", augment=way.augment, seed=seed, **labelled)
    validation = cohort.dataset("source", "validation", **labelled)
    if train is None:
        raise DataError("There are no training cases: every case of the source was left out or held out.")
    classes, labels = cohort.table.classes, cohort.table.labels
    adapter = way.build(len(classes), cohort.cache.preprocess, seed)
    adapter.criterion = SegmentationLoss.balanced(way.loss, cohort.voxel_counts())
    folder = run.model_folder(name, seed)
    with CostMeter(run, folder) as meter:
        result = fit(
            adapter,
            train,
            folder=folder,
            config=config,
            validation=validation,
            header=model_header(adapter, classes, cohort.cache.preprocess, labels=labels, patch=patch),
            metrics=run.metrics(name, seed),
        )

    def predict() -> int:
        return len(list(itertools.islice(segment_cases(adapter.model, train, patch=patch), _TIMED)))

    kept = Kept(
        model=name,
        seed=seed,
        best_epoch=result.best_epoch,
        train_accuracy=_dice(adapter, train, config.batch_size),
        validation_accuracy=_dice(adapter, validation, config.batch_size),
        validation_patients=0 if validation is None else len({case.patient for case in validation.cases}),
    )
    cost = meter.cost(name, adapter, lr=config.lr, predict=predict)
    assert isinstance(adapter.model, Segmenter)
    return adapter.model, Tuned(result=result, kept=kept, cost=cost)


@torch.no_grad()
def _dice(adapter: Strategy, data: CaseDataset | None, batch_size: int) -> float | None:
    """Mean Dice over the structures, of patches without augmentation, as in the log of the training."""
    if data is None:
        return None
    tally, device = Validation(adapter.supervised_loss), default_device()
    with modes_kept(adapter):
        adapter.to(device).eval()
        for batch in DataLoader(data.plain(), batch_size=batch_size, collate_fn=collate):
            if batch.label is not None:
                tally.add(adapter.model(batch.image.to(device)).logits, batch.label.to(device))
    return tally.compute().get("validation_dice")
