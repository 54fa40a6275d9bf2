"""The contract of an adaptation method.

An adapter works in any training loop:

    adapter = DANN(model)
    losses = adapter(source, target, progress=step / num_steps)
    losses["loss"].backward()

`medtl.fit` also calls its optional hooks; in a loop of your own, call `begin` before the first step, `end_step` after
each, and `finish` after the last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters.contract.facts import Facts
from medtl.adapters.contract.norm import DomainStatistics, Norm, Statistics, reestimate_statistics
from medtl.adapters.contract.phase import Phase
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.output import MODEL_TASKS, Output
from medtl.models.parts import batch_norms
from medtl.strategies.contract.strategy import Strategy
from medtl.strategies.full import Full

NEEDS = frozenset({"source", "target", "labelled_target", "index", "strong_view"})
StartsFrom = Literal["imagenet", "source_only"]

_NO_SMOOTHING = (
    "{name}: label_smoothing is {value}, which applies to the cross-entropy of classification and would change "
    "nothing in segmentation. Leave it at 0 and choose the loss by its name."
)


class Statistic(TypedDict, total=False):
    """The hyper-parameters of `Adapter` that do not need the source's labels."""

    norm: Norm
    statistics: Statistics
    strategy: Strategy | None


class Common(Statistic, total=False):
    """The hyper-parameters of `Adapter`, which a method passes on as `**common: Unpack[Common]`."""

    label_smoothing: float


class Adapter(nn.Module):
    """Adapts `model`; extra networks are submodules, constants are buffers.

    Args:
        model: `model(image) -> Output(logits, features)`; see `medtl.with_features` for other networks.
        norm: how BatchNorm treats the two domains, see `medtl.adapters.contract.norm`.
        statistics: BatchNorm statistics to predict with: `running`, those of training, or `target`,
            re-estimated over the target at the end of `medtl.fit` (in your own loop, call
            `finish({"target": batches})`).
        label_smoothing: label smoothing of the source's cross-entropy, in [0, 1).
        strategy: what of the model learns and how, made for this model; by default all of it, `Full(model)`.

    Attributes:
        needs: what `forward` takes. A batch of the target never holds its labels; `labelled_target` is a third stream,
            which holds those of the few cases that training may use.
        starts_from: what `model` holds before the first step: the encoder's weights, or a model trained on the source.
        tasks: the supported tasks; `why_not` says why the others are not.
        phases: the turns of a training step; one by default, none for a method that takes no steps.
        aligns: the target acts on the features, so that something below the head must learn.
        on_features: its losses need no more than the features of a frozen encoder.
        kind: the `medtl list` table that shows it.
        model: the network that learns.
        predictor: the network that predicts and is saved: `model`, unless the method sets another of its networks,
            such as a teacher (`self.predictor = self.teacher`).
        head_lr: learning rate of the method's own networks, as a multiple of the model's.
        criterion: the source's loss, `(logits, label) -> scalar`; None means cross-entropy, and in segmentation
            `SegmentationLoss()`, Dice plus cross-entropy.

    Raises:
        ConfigError: a hyper-parameter out of its range, a model without what the method acts on, or a strategy that
            does not go with the method.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    starts_from: ClassVar[StartsFrom] = "imagenet"
    tasks: ClassVar[frozenset[str]] = MODEL_TASKS
    why_not: ClassVar[str] = "the method is not defined for it"
    norms: ClassVar[frozenset[str]] = frozenset(get_args(Norm))
    phases: ClassVar[tuple[Phase, ...]] = (Phase(),)
    aligns: ClassVar[bool] = False
    on_features: ClassVar[bool] = False
    kind: ClassVar[str] = "methods"
    head_lr: float = 1.0

    def __init__(
        self,
        model: nn.Module,
        *,
        norm: Norm = "separate",
        statistics: Statistics = "running",
        label_smoothing: float = 0.0,
        strategy: Strategy | None = None,
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
        self.strategy: Strategy
        self.hold(strategy if strategy is not None else Full(model))

    def __call__(
        self,
        source: Batch | None = None,
        target: Batch | None = None,
        **streams: Any,
    ) -> dict[str, Tensor]:
        """As `forward`, with the strategy at work: its mixed source, its updates of the model, its penalties."""
        strategy = self.strategy
        strategy.on_progress(float(streams.get("progress", 0.0)))
        source = strategy.mixed(source)
        with strategy.watching():
            losses: dict[str, Tensor] = super().__call__(source, target, **streams)
            added = strategy.penalties()
        if added:
            total = torch.stack([losses["loss"], *added.values()]).sum()
            losses = {**losses, "loss": total, **{k: v.detach() for k, v in added.items()}}
        return losses

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; `predictor` is one of the adapter's networks and is not registered a second time."""
        if name == "predictor":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def predictor(self) -> nn.Module:
        """The network that predicts and is saved."""
        chosen: nn.Module | None = self.__dict__.get("_predictor")
        return self.model if chosen is None else chosen

    @predictor.setter
    def predictor(self, network: nn.Module) -> None:
        self.__dict__["_predictor"] = network

    @property
    def trains(self) -> bool:
        """Whether the optimiser takes steps."""
        return bool(self.phases) and self.strategy.trains

    def hold(self, strategy: Strategy) -> None:
        """Takes a strategy, which was made for this model.

        Args:
            strategy: see `medtl.strategies`.

        Raises:
            ConfigError: the two do not go together; the message says why.
        """
        name, other = type(self).__name__, type(strategy).__name__
        if strategy.model is not self.model:
            raise ConfigError(f"{name} got a strategy {other} that was made for another model.")
        known = {id(p) for part in strategy.parts for p in part.parameters.values()}
        if known != {id(p) for p in self.model.parameters()}:
            raise ConfigError(
                f"{name} has changed the model since the strategy {other} was made for it. Make the adapter first, "
                "then the strategy, and hand it over with hold(strategy)."
            )
        mixes, plain = bool(strategy.mixup or strategy.cutmix), isinstance(strategy, Full)
        reason = ""
        if not self.phases and not (plain and strategy.is_plain):
            reason = "the method trains nothing, so no strategy would change anything"
        elif strategy.alone and not self.on_features:
            reason = strategy.alone
        elif strategy.sets_head and self.starts_from == "source_only":
            reason = "the method starts from a trained model, and the strategy would set its head anew"
        elif mixes and "source" not in self.needs:
            reason = "mixup and cutmix mix labelled cases of the source, and the method gets none"
        elif strategy.by_batch and self.norm == "frozen":
            reason = "norm=frozen keeps BatchNorm in eval mode, in which the strategy changes nothing"
        elif strategy.head_first and not strategy.head_learns:
            reason = "the strategy begins with the head, which the method keeps"
        elif self.aligns and not self._learns_below_head(strategy):
            reason = "the method moves the features, and with the strategy nothing below the head learns"
        if reason:
            raise ConfigError(f"{name} does not go with the strategy {other}: {reason}.")
        self.strategy = strategy

    def _learns_below_head(self, strategy: Strategy) -> bool:
        if not strategy.knows_parts:
            return True
        head = getattr(self.model, "head", None)
        above = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
        return any(id(p) not in above for p in strategy.learning())

    def check(self) -> None:
        """Refuses what only the whole adapter shows; called by `build_adapter` and `medtl.fit`.

        Raises:
            ConfigError: averaged weights beside a teacher, or a predictor that the adapter does not hold.
        """
        name = type(self).__name__
        if not any(module is self.predictor for module in self.modules()):
            raise ConfigError(
                f"{name}: its predictor is not one of its own networks, so it could not be saved. Make it an "
                "attribute of the adapter first."
            )
        if self.strategy.average is not None and self.predictor is not self.model:
            raise ConfigError(
                f"{name} predicts with another network than the one that learns, so an average of the latter's "
                "weights would be thrown away. Leave ema at 0."
            )

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

    def own_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the method's own networks: neither the model's nor the strategy's."""
        taken = {id(p) for part in (self.model, self.strategy) for p in part.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in taken]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters and learning rates for an optimiser: the strategy's, and the own networks' at `lr * head_lr`."""
        own, rate = self.own_parameters(), lr * self.head_lr
        weights, rest = [p for p in own if p.ndim > 1], [p for p in own if p.ndim < 2]
        groups = self.strategy.param_groups(lr)
        if weights:
            groups.append({"params": weights, "lr": rate})
        if rest:
            groups.append({"params": rest, "lr": rate, "weight_decay": 0.0})
        return groups

    def keep_gradients(self, phase: Phase) -> None:
        """Drops the gradients of all parameters that do not learn in this phase; for your own loop.

        Args:
            phase: one of `phases`.
        """
        learning = [*self.strategy.learning(), *self.own_parameters()]
        kept = {id(p) for p in phase.parameters(self, learning)}
        for parameter in self.parameters():
            if id(parameter) not in kept:
                parameter.grad = None

    def learning_rate(self, group: Mapping[str, Any], progress: float) -> float:
        """Learning rate of a group of `param_groups` as a fraction of its peak, at `progress` in [0, 1].

        The default is a linear warm-up over the first tenth of training, then a half cosine to zero.
        """
        return warm_cosine(progress)

    def on_data(self, facts: Facts) -> None:
        """Called before everything else with facts about the data, also when a run is resumed.

        The place to make networks that depend on the data, such as a discriminator of sites.

        Args:
            facts: sites, classes, shares and numbers.
        """

    def on_fit_start(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Called once before the first step of a training, but not when a run is resumed.

        Args:
            loaders: `source` yields every labelled training case once, in order, without augmentation; `target` every
                case of the target, and `labelled_target` its labelled ones, if the method needs them.
        """

    def on_epoch_start(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Called before each epoch; `loaders["target"]` yields every case once, in order, without augmentation."""

    def on_step_end(self) -> None:
        """Called after each optimiser step, while the model holds all that it has learnt."""

    def begin(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """To be called once before the first step: the strategy's part, then `on_fit_start`.

        Args:
            loaders: see `on_fit_start`.
        """
        self.strategy.on_fit_start(loaders, self.criterion)
        self.on_fit_start({k: Unlabelled(v) if k == "target" else v for k, v in loaders.items()})

    def finish(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """To be called once after the last step: the strategy's part, then `on_fit_end`.

        Args:
            loaders: see `on_fit_end`.
        """
        self.strategy.finish()
        self.on_fit_end(loaders)

    def end_step(self) -> None:
        """To be called after each optimiser step: the strategy's part, then `on_step_end`."""
        self.strategy.on_step_end()
        if type(self).on_step_end is not _NOTHING:
            with self.strategy.applied():
                self.on_step_end()

    def on_fit_end(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Called once after training; sets the target's statistics if `statistics=target`.

        Args:
            loaders: `target` yields every case once.

        Raises:
            ConfigError: there is no target to take statistics from.
        """
        if self.statistics == "target":
            if "target" not in loaders:
                raise ConfigError(
                    f"{type(self).__name__} with statistics=target needs the target's scans, got none."
                )
            if self.source_statistics is not None and not self.statistics_differ:
                self.source_statistics.keep(self.predictor)
            reestimate_statistics(self.predictor, loaders["target"])
            self.statistics_differ.fill_(True)

    def train(self, mode: bool = True) -> Adapter:
        """Sets the mode; frozen parts stay in eval mode, with `norm="frozen"` BatchNorm layers too."""
        super().train(mode)
        if mode:
            self.strategy.hold()
        if self.norm == "frozen":
            for layer in batch_norms(self.model):
                layer.eval()
        return self

    def supervised_loss(self, logits: Tensor, label: Tensor | None, *, role: str = "source") -> Tensor:
        """Cross-entropy of logits (B, K) with classes (B,), or binary cross-entropy with a float matrix (B, K).

        In segmentation, `criterion` of logits (B, K, *S) with masks (B, *S); in classification `criterion` too, if it
        is set. A negative class, or NaN in the matrix, means unlabelled and is left out. Computed in float32.

        Args:
            logits: before softmax.
            label: as above; where the strategy mixed the source, its own label tensor stands for the mixture.
            role: whose labels they are, for messages.

        Raises:
            DataError: there are no labels, or classes that the network does not have.
            ConfigError: one logit, labels of another kind, or an unsupported task.
        """
        name = type(self).__name__
        if label is None:
            raise DataError(f"{name} needs labels in the {role} batch, and it has none.")
        self._check_labels(logits, label, role)
        mixture = self.strategy.mixture
        if mixture is not None and label is mixture.label:
            # A mixture of losses is the loss of the mixture, because they are linear in the target.
            first, second = (self._loss(logits, each) for each in (label, label[mixture.order]))
            return mixture.share * first + (1 - mixture.share) * second
        return self._loss(logits, label)

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
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
        label = label.long()
        if self.criterion is None:
            return F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=self.label_smoothing)
        weighted: Tensor = self.criterion(logits, label)
        if not self.label_smoothing:
            return weighted
        others = (torch.where(label < 0, label, k) for k in range(logits.shape[1]))
        uniform = torch.stack([self.criterion(logits, other) for other in others]).mean()
        return (1 - self.label_smoothing) * weighted + self.label_smoothing * uniform

    def _check_labels(self, logits: Tensor, label: Tensor, role: str) -> None:
        """Tells what torch would say as an IndexError."""
        name, num_classes = type(self).__name__, logits.shape[1] if logits.ndim > 1 else 1
        if num_classes == 1:
            raise ConfigError(
                f"{name}: the network gives one logit (shape {tuple(logits.shape)}); expected one for each class. A "
                "binary task has two: give the network two outputs."
            )
        if label.is_floating_point():
            if label.shape == logits.shape and logits.ndim == 2:
                return
            raise ConfigError(
                f"{name}: the labels of the {role} are {label.dtype} of shape {tuple(label.shape)}; expected int64 "
                f"class indices of shape {(len(logits), *logits.shape[2:])}, or for several findings a float matrix of "
                f"shape {tuple(logits.shape)}."
            )
        if label.shape != (len(logits), *logits.shape[2:]):
            raise DataError(
                f"{name}: logits {tuple(logits.shape)} and labels {tuple(label.shape)} of the {role} do not agree: "
                f"expected labels of shape {(len(logits), *logits.shape[2:])}."
            )
        if label.numel() and int(label.max()) >= num_classes:
            raise DataError(
                f"{name}: the labels of the {role} hold class {int(label.max())}, and the network has {num_classes} "
                f"classes, 0 to {num_classes - 1}. Build it with more classes, or check the labels."
            )

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
        """Within it, `predictor` predicts for the source: with the source's BatchNorm statistics if there are two sets.

        Validation, temperature scaling and operating points use the source and belong in here.
        """
        with self.strategy.evaluating(), self._source_normed(self.predictor):
            yield

    @contextmanager
    def _source_normed(self, network: nn.Module) -> Iterator[None]:
        if self.source_statistics is None or not self.statistics_differ:
            yield
        else:
            with self.source_statistics.swapped(network):
                yield

    def _source_pass(self, image: Tensor) -> Output:
        with self._source_normed(self.model):
            output: Output = self.model(image)
        return output

    def _check_task(self, task: str | None) -> None:
        """Refuses a task that the method does not support; None: unknown until the logits are seen."""
        if task in MODEL_TASKS - self.tasks:
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


_NOTHING = Adapter.on_step_end


class Unlabelled:
    """Batches without labels: what the target's labels are is not a method's to know."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return map(unlabelled, self._batches)


def unlabelled(batch: Batch) -> Batch:
    """The batch without its labels, which no method may see where they are the target's."""
    return batch if batch.label is None else dataclasses.replace(batch, label=None)


def warm_cosine(progress: float, warmup: float = 0.1) -> float:
    """Learning rate as a fraction of its peak: a linear warm-up from a tenth, then a half cosine to zero."""
    if progress < warmup:
        return 0.1 + 0.9 * progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
