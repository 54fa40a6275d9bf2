"""Fine-tuning one classifier on the source: what the recipes that fine-tune have in common.

A `FineTuning` says how (encoder, strategy, head, loss); `fine_tune` trains it once and tests it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import Subset

from medtl.config import listed
from medtl.data.cases.table import Case
from medtl.data.cohort import Cohort
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.spec import Preprocess
from medtl.encoders.features import FeatureDataset, extract_features
from medtl.errors import ConfigError, DataError
from medtl.evaluation import Cost
from medtl.models import Classifier, build_classifier
from medtl.models.losses.classification import ClassificationLoss, calibration_note, check_imbalance
from medtl.prediction.classify import predict_cases, prediction_rows
from medtl.prediction.trained import model_header
from medtl.runs import Run
from medtl.strategies import Strategy, build_strategy, parse_strategy_hparams
from medtl.training.costs import CostMeter, mean_costs
from medtl.training.fit import FitConfig, FitResult, fit
from medtl.training.learning import Kept, balanced_accuracy, learning_curves

_TIMED = 32
"""Cases that are predicted to know how long one takes."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """One way of fine-tuning a classifier; the fields are called like the recipes' flags.

    Attributes:
        encoder: timm's name.
        weights: as in `build_encoder`.
        strategy: a name that `medtl list strategies` shows, such as `full`, `probe` or `last:2`.
        hparams: hyper-parameters of the strategy.
        head: `linear`, or `dense:N` for a hidden layer of N units before it.
        imbalance: what is done about rare classes, see `medtl.models.losses.classification`.
        augment: of the training images; a strategy on cached features sees it as `views`.
    """

    encoder: str
    weights: str = "imagenet"
    strategy: str = "full"
    hparams: Mapping[str, Any] = field(default_factory=dict)
    head: str = "linear"
    imbalance: str = "none"
    augment: str = "standard"

    @classmethod
    def of_recipe(cls, config: Any, **own: Any) -> FineTuning:
        """What a recipe's flags say; `own` are fields that the recipe gives otherwise."""
        fields = ("encoder", "weights", "strategy", "head", "imbalance", "augment")
        given = {f: getattr(config, f) for f in fields if hasattr(config, f)} | own
        hparams = parse_strategy_hparams(
            given["strategy"],
            config.hparams,
            among=listed(config.strategies, "--strategies") if hasattr(config, "strategies") else (),
        )
        return cls(**given, hparams=hparams)

    def __post_init__(self) -> None:
        check_imbalance(self.imbalance)
        _hidden_units(self.head)

    def build(self, num_classes: int, preprocess: Preprocess, seed: int) -> Strategy:
        """The untrained model inside its strategy.

        Raises:
            ConfigError: an unknown name, or a strategy that does not go with the encoder, the head or `imbalance`.
            WeightsError: the weights are absent or of another encoder.
        """
        model = build_classifier(
            self.encoder,
            num_classes,
            weights=self.weights,
            in_channels=preprocess.channels,
            bottleneck=_hidden_units(self.head),
            image_size=preprocess.image_size,
            pooling="attention" if preprocess.spatial_dims == 3 else "mean",
            seed=seed,
        )
        strategy = build_strategy(self.strategy, model, seed=seed, **self.hparams)
        if not strategy.trains and self.imbalance != "none":
            raise ConfigError(
                f"--imbalance {self.imbalance} acts in training, and strategy {self.strategy} trains nothing. Leave "
                "one of them out."
            )
        return strategy

    @property
    def note(self) -> str:
        """What the report says about the way the model was trained."""
        note = calibration_note(self.imbalance)
        return f"Strategy {self.strategy} on {self.encoder}." + (f" {note}" if note else "")


@dataclass(frozen=True)
class Tuned:
    """What is known of a training; the model itself is on disk.

    Attributes:
        result: what training did.
        kept: balanced accuracy (segmentation: mean Dice) of the kept weights on training and validation cases.
        cost: time, memory and size.
        rows: of a classifier, predictions of the tested cases as rows of the predictions table.
    """

    result: FitResult
    kept: Kept
    cost: Cost
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)


def fine_tune(
    way: FineTuning,
    run: Run,
    cohort: Cohort,
    *,
    name: str,
    seed: int,
    config: FitConfig,
    cases: Sequence[Case] | None = None,
) -> Tuned:
    """Trains once on the source's training cases and predicts all that is held out: validation, test, target.

    Args:
        way: how.
        run: where the model, its metrics and its cost go. What is there already is not trained again.
        cohort: the cases.
        name: of the model, in the predictions and in the run folder.
        seed: of this training.
        config: how to train; its `balanced` is set by `way`.
        cases: these training cases instead of all.

    Raises:
        DataError: there are fewer training cases than classes, or a class without any.
    """
    classes = cohort.table.classes
    train = cohort.dataset("source", "train", with_labels=True, augment=way.augment, seed=seed, cases=cases)
    held_out = {
        part: cohort.dataset(*part)
        for part in (("source", "validation"), ("source", "test"), ("target", "test"))
    }
    validation = cohort.dataset("source", "validation", with_labels=True)
    if train is None:
        raise DataError("There are no training cases: every case of the source was left out or held out.")
    counts = np.bincount(train.labels or (), minlength=len(classes))
    if absent := [c for c, n in zip(classes, counts, strict=True) if not n]:
        raise DataError(
            f"Training has no case of {', '.join(absent)} among its {len(train)} cases, expected one of each of the "
            f"{len(classes)} classes. Add patients, choose --classes, or another --seed for the split."
        )
    adapter = way.build(len(classes), cohort.cache.preprocess, seed)
    adapter.criterion = ClassificationLoss.of_labels(way.imbalance, train.labels, len(classes))
    folder = run.model_folder(name, seed)

    def seen(data: CaseDataset | None, views: int = 1) -> CaseDataset | FeatureDataset | None:
        """What the model is given: the images, or their features where the encoder does not change."""
        if data is None or not adapter.on_features:
            return data
        encoder = _classifier(adapter).encoder
        return extract_features(encoder, data, run.cache / "features", views=views)

    with CostMeter(run, folder) as meter:
        features = seen(train, adapter.views if way.augment != "none" else 1)
        assert features is not None
        checked = seen(validation)
        result = fit(
            adapter,
            features,
            folder=folder,
            config=replace(config, balanced=way.imbalance == "balanced_sampling"),
            validation=checked,
            header=model_header(adapter, classes, cohort.cache.preprocess),
            metrics=run.metrics(name, seed),
        )

    def predict() -> int:
        """From preprocessed scans: new ones have no features yet."""
        some = Subset(train.plain(), range(min(_TIMED, len(train))))
        return len(predict_cases(adapter.model, some))

    tested = [
        (plain, given)
        for plain in held_out.values()
        if plain is not None and (given := seen(plain)) is not None
    ]
    rows = [
        prediction_rows(plain.cases, predict_cases(adapter.model, given), classes, name, seed)
        for plain, given in tested
    ]
    kept = Kept(
        model=name,
        seed=seed,
        best_epoch=result.best_epoch,
        train_accuracy=_accuracy(adapter, features.plain()),
        validation_accuracy=_accuracy(adapter, checked),
        validation_patients=0 if validation is None else len({case.patient for case in validation.cases}),
    )
    return Tuned(
        result=result,
        kept=kept,
        cost=meter.cost(name, adapter, lr=config.lr, predict=predict),
        rows=pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
    )


def training_record(run: Run, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """How the trainings of a run went and what they cost, as fields of `RunContext`."""
    return {
        "learning": learning_curves(run.folder / "metrics.csv", [one.kept for one in tuned]),
        "costs": mean_costs([one.cost for one in tuned]),
    }


def _classifier(adapter: Strategy) -> Classifier:
    assert isinstance(adapter.model, Classifier)
    return adapter.model


def _hidden_units(head: str) -> int | None:
    kind, colon, width = head.partition(":")
    if head == "linear":
        return None
    if kind != "dense" or (colon and not (width.isdigit() and int(width) > 0)):
        raise ConfigError(
            f"There is no head {head!r}. Expected linear, or dense:N with N hidden units (dense:1024)."
        )
    return int(width or 1024)


def _accuracy(adapter: Strategy, data: CaseDataset | FeatureDataset | None) -> float | None:
    """Balanced accuracy of the model on labelled cases."""
    if data is None or data.labels is None:
        return None
    return balanced_accuracy(data.labels, predict_cases(adapter.model, data))
