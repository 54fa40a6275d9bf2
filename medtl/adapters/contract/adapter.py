"""The contract of an adaptation method.

An adapter works in any training loop:

    adapter = DANN(model)
    losses = adapter(source, target, progress=step / num_steps)
    losses["loss"].backward()

`medtl.fit` also calls its optional hooks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters.contract.norm import (
    DomainStatistics,
    Norm,
    Statistics,
    batch_norms,
    reestimate_statistics,
)
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.output import Output

NEEDS = frozenset({"source", "target", "target_labels", "index", "strong_view"})
TASKS = frozenset({"binary", "multiclass", "multilabel", "segmentation"})

_NO_SMOOTHING = (
    "{name}: label_smoothing is {value}, which applies to the cross-entropy of classification and would change "
    "nothing in segmentation. Leave it at 0 and choose the loss by its name."
)


class Common(TypedDict, total=False):
    """The hyper-parameters of `Adapter`, which a method passes on as `**common: Unpack[Common]`."""

    norm: Norm
    statistics: Statistics
    label_smoothing: float


class Adapter(nn.Module):
    """Adapts `model`; extra networks are submodules, constants are buffers.

    Args:
        model: `model(image) -> Output(logits, features)`; see `medtl.with_features` for other networks.
        norm: how BatchNorm treats the two domains, see `medtl.adapters.contract.norm`.
        statistics: BatchNorm statistics to predict with: `running`, those of training, or `target`,
            re-estimated over the target at the end of `medtl.fit` (in your own loop, call
            `on_fit_end({"target": batches})`).
        label_smoothing: label smoothing of the source's cross-entropy, in [0, 1).

    Attributes:
        needs: what `forward` takes; a batch holds the target's labels only if they are named here.
        tasks: the supported tasks; `why_not` says why the others are not.
        test_time: the method is not trained but adapts to each group of cases when it predicts them, see
            `medtl.adapters.contract.test_time`.
        trains: `fit` takes steps; if False, it calls `on_fit_start` and saves the model.
        source_weights: with default hyper-parameters its weights equal those of source-only, so that a recipe starts
            from that model and skips training (`FitConfig(epochs=0)`).
        kind: `methods` or `strategies`: the `medtl list` table that shows it.
        model: the network that is saved and used to predict.
        criterion: the source's loss, `(logits, label) -> scalar`; None means cross-entropy, and in segmentation
            `SegmentationLoss()`, Dice plus cross-entropy.

    Raises:
        ConfigError: a hyper-parameter out of its range, or a model without what the method acts on.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    tasks: ClassVar[frozenset[str]] = TASKS
    why_not: ClassVar[str] = "the method is not defined for it"
    norms: ClassVar[frozenset[str]] = frozenset(get_args(Norm))
    test_time: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    source_weights: ClassVar[bool] = False
    kind: ClassVar[str] = "methods"

    def __init__(
        self,
        model: nn.Module,
        *,
        norm: Norm = "separate",
        statistics: Statistics = "running",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self._check_task(getattr(model, "task", None))
        for key, value, choices in (
            ("norm", norm, self.norms),
            ("statistics", statistics, get_args(Statistics)),
        ):
            if value not in choices:
                raise ConfigError(
                    f"{name} does not support {key}={value!r}. There are: {', '.join(sorted(choices))}."
                )
        if not 0 <= label_smoothing < 1:
            raise ConfigError(
                f"{name}: label_smoothing is {label_smoothing}; expected at least 0 and below 1."
            )
        if label_smoothing and getattr(model, "task", None) == "segmentation":
            raise ConfigError(_NO_SMOOTHING.format(name=name, value=label_smoothing))
        if (norm in ("domain_specific", "frozen") or statistics == "target") and not batch_norms(model):
            raise ConfigError(
                f"{name} with norm={norm}, statistics={statistics} acts on BatchNorm layers, and the model has none "
                "(LayerNorm, GroupNorm and InstanceNorm keep no domain statistics), so it would change nothing. "
                "Choose an encoder with BatchNorm (resnet, efficientnet, ...), another method, or the defaults."
            )
        self.model = model
        self.criterion: nn.Module | None = None
        self.norm = norm
        self.statistics = statistics
        self.label_smoothing = label_smoothing
        two_sets = norm == "domain_specific" or statistics == "target"
        self.source_statistics = DomainStatistics(model) if two_sets else None
        self.statistics_differ: Tensor
        self.register_buffer("statistics_differ", torch.tensor(norm == "domain_specific"))

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the losses of one step.

        Args:
            source: labelled batch of the source, if `needs` names it.
            target: batch of the target, without labels; its size may differ from the source's.
            progress: fraction of the whole training done so far, in [0, 1].

        Returns:
            `loss`, to be minimised, and each of its parts by name: scalars.
        """
        raise TypeError(f"{type(self).__name__} does not define forward(source, target, *, progress).")

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters and learning rates for an optimiser; by default, all trainable parameters at `lr`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def learning_rate(self, group: Mapping[str, Any], progress: float) -> float:
        """Learning rate of a group of `param_groups` as a fraction of its peak, at `progress` in [0, 1].

        The default is a linear warm-up over the first tenth of training, then a half cosine to zero.
        """
        return warm_cosine(progress)

    def on_fit_start(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Called once before the first step of a training, but not when a run is resumed.

        `loaders["source"]` yields every labelled training case once, in order, without augmentation.
        """

    def on_epoch_start(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Called before each epoch; `loaders["target"]` yields every case once, in order, without augmentation."""

    def on_step_end(self) -> None:
        """Called after each optimiser step."""

    def on_fit_end(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Called once after training; sets the target's statistics if `statistics="target"`."""
        if self.statistics == "target":
            if "target" not in loaders:
                raise ConfigError(
                    f"{type(self).__name__} with statistics=target needs the target's scans, got none."
                )
            if self.source_statistics is not None and not self.statistics_differ:
                self.source_statistics.keep(self.model)
            reestimate_statistics(self.model, loaders["target"])
            self.statistics_differ.fill_(True)

    def train(self, mode: bool = True) -> Adapter:
        """Sets the mode; with `norm="frozen"` BatchNorm layers stay in eval mode."""
        super().train(mode)
        if self.norm == "frozen":
            for layer in batch_norms(self.model):
                layer.eval()
        return self

    def supervised_loss(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """Cross-entropy of logits (B, K) with classes (B,), or binary cross-entropy with a float matrix (B, K).

        In segmentation, `criterion` of logits (B, K, *S) with masks (B, *S); in classification `criterion` too, if it
        is set. A negative class, or NaN in the matrix, means unlabelled and is left out. Computed in float32.
        """
        if label is None:
            raise DataError(f"{type(self).__name__} needs labels in the source batch, and it has none.")
        logits = logits.float()
        if logits.ndim > 2:
            self._check_task("segmentation")
            if self.label_smoothing:
                raise ConfigError(_NO_SMOOTHING.format(name=type(self).__name__, value=self.label_smoothing))
            if self.criterion is None:
                from medtl.models.losses.segmentation import SegmentationLoss

                self.criterion = SegmentationLoss()
            loss: Tensor = self.criterion(logits, label)
            return loss
        self._check_task("multilabel" if label.is_floating_point() else "multiclass")
        if label.is_floating_point():
            known = ~label.isnan()
            return F.binary_cross_entropy_with_logits(logits[known], label[known])
        if self.criterion is not None:
            weighted: Tensor = self.criterion(logits, label)
            return weighted
        return F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=self.label_smoothing)

    def forward_source(self, source: Batch | None) -> Output:
        """Passes the source alone through the model."""
        return self._source_pass(self._given(source, "source").image)

    def forward_domains(self, source: Batch | None, target: Batch | None) -> tuple[Output, Output]:
        """Passes both domains through the model as `norm` says; their batch sizes may differ."""
        x, y = self._given(source, "source").image, self._given(target, "target").image
        if self.norm == "joint":
            both = self.model(torch.cat([x, y]))
            sizes = [len(x), len(y)]
            logits, features = both.logits.split(sizes), both.features.split(sizes)
            return Output(logits[0], features[0]), Output(logits[1], features[1])
        return self._source_pass(x), self.model(y)

    @contextmanager
    def on_source(self) -> Iterator[None]:
        """Within it, `model` predicts for the source: with the source's BatchNorm statistics if there are two sets.

        Validation, temperature scaling and operating points use the source and belong in here.
        """
        if self.source_statistics is None or not self.statistics_differ:
            yield
        else:
            with self.source_statistics.swapped(self.model):
                yield

    def _source_pass(self, image: Tensor) -> Output:
        with self.on_source():
            output: Output = self.model(image)
        return output

    def _check_task(self, task: str | None) -> None:
        """Refuses a task that the method does not support; None: unknown until the logits are seen."""
        if task in TASKS - self.tasks:
            raise ConfigError(
                f"{type(self).__name__} does not support the task {task}: {self.why_not}. It is for "
                f"{', '.join(sorted(self.tasks))}; see `medtl list {self.kind}` for others."
            )

    def _given(self, batch: Batch | None, role: str) -> Batch:
        if batch is None:
            raise DataError(f"{type(self).__name__} needs a {role} batch, got None.")
        return batch

    def _num_features(self) -> int:
        width = getattr(self.model, "num_features", None)
        if not isinstance(width, int):
            raise ConfigError(
                f"{type(self).__name__} aligns features, and the model does not say how wide they are (num_features). "
                "Wrap it: with_features(model)."
            )
        return width


def warm_cosine(progress: float, warmup: float = 0.1) -> float:
    """Learning rate as a fraction of its peak: a linear warm-up from a tenth, then a half cosine to zero."""
    if progress < warmup:
        return 0.1 + 0.9 * progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
