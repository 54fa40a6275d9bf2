"""The contract of a fine-tuning strategy: what of a model learns, how fast, and what holds it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError
from medtl.models.output import MODEL_TASKS
from medtl.models.parts import batch_norms, modes_kept
from medtl.strategies.contract.average import Average
from medtl.strategies.contract.stages import Part, model_parts


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixed batch: `share` of the labels are those of its own places, the rest those of the places in `order`."""

    label: Tensor
    order: Tensor
    share: float


class StrategyOptions(TypedDict, total=False):
    """The hyper-parameters of `Strategy`, which a strategy passes on as `**common: Unpack[StrategyOptions]`."""

    dropout: float | None
    weight_decay: float | None
    mixup: float
    cutmix: float
    ema: float


class Strategy(nn.Module):
    """Decides what of a model learns and how; an adapter holds it (`DANN(model, strategy=LoRA(model))`).

    "The head" means every layer that is not pretrained: the linear head, a dense layer or attention pooling before it,
    or the decoder of a segmentation network. Frozen parts get no gradient, stay in eval mode, and end bit for bit as
    they began, including BatchNorm statistics. Biases, norm scales and what timm exempts get no weight decay (He et
    al. 2019, section 3.1).

    Args:
        model: a `Classifier` or `Segmenter`, or any network that returns `Output(logits, features)`.
        dropout: probability of dropping a feature before the head; None keeps the model's own.
        weight_decay: weight decay of the optimiser; None keeps that of the training.
        mixup: alpha of Beta(alpha, alpha), the share of two mixed images of the source (Zhang et al. 2018); 0 is off,
            0.2 is usual.
        cutmix: alpha of the share of a pasted box (Yun et al. 2019); 0 is off, 1 is usual. If both are on, each batch
            uses one of them, chosen at random.
        ema: decay of a moving average of the weights, which is validated and saved; 0 is off, 0.99 to 0.9999 are usual.

    Attributes:
        kind: the `medtl list` table that shows it.
        tasks: the supported tasks; `why_not` says why the others are not.
        trains: whether the optimiser takes steps.
        on_features: whether it can train on features computed once, because the encoder never changes.
        alone: why no adaptation method can hold it; "" if one can.
        sets_head: whether it sets the head before the first step, so that no trained head may be there.
        by_batch: whether it acts on BatchNorm layers in training mode.
        head_first: whether nothing but the head learns at first.
        argument: the hyper-parameter that may follow a colon in the name, as in `last:2`.
        views: number of augmented views of each case that a strategy on features uses.
        parts: the encoder's stages, stem first, then the new parts.

    Raises:
        ConfigError: a hyper-parameter out of its range, or one that the model cannot use.
    """

    kind: ClassVar[str] = "strategies"
    tasks: ClassVar[frozenset[str]] = MODEL_TASKS
    why_not: ClassVar[str] = "the strategy is not defined for it"
    trains: ClassVar[bool] = True
    on_features: ClassVar[bool] = False
    alone: ClassVar[str] = ""
    sets_head: ClassVar[bool] = False
    by_batch: ClassVar[bool] = False
    head_first: ClassVar[bool] = False
    argument: ClassVar[str | None] = None
    trained_part: ClassVar[str] = "some"
    views: int = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        dropout: float | None = None,
        weight_decay: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        self._held = (model,)  # not registered: the adapter registers it
        if (task := getattr(model, "task", None)) in MODEL_TASKS - self.tasks:
            raise ConfigError(
                f"{type(self).__name__} does not support the task {task}: {self.why_not}. It is for "
                f"{', '.join(sorted(self.tasks))}; see `medtl list strategies` for others."
            )
        self._check("mixup", mixup, mixup >= 0, "at least 0")
        self._check("cutmix", cutmix, cutmix >= 0, "at least 0")
        self._check("ema", ema, 0 <= ema < 1, "at least 0 and below 1, such as 0.999")
        self._check("weight_decay", weight_decay, weight_decay is None or weight_decay >= 0, "at least 0")
        if (mixup or cutmix) and getattr(model, "task", None) == "segmentation":
            raise ConfigError(
                f"{type(self).__name__}: mixup and cutmix mix the labels of whole images, not masks. Leave "
                "them at 0."
            )
        if dropout is not None:
            self._check("dropout", dropout, 0 <= dropout < 1, "at least 0 and below 1")
            if not isinstance(layer := getattr(model, "dropout", None), nn.Dropout):
                raise ConfigError(
                    f"{type(self).__name__}: dropout acts before the head of a Classifier, and "
                    f"{type(model).__name__} has no layer of that name, so it would change nothing. Leave it out."
                )
            layer.p = dropout
        self.weight_decay, self.mixup, self.cutmix = weight_decay, mixup, cutmix
        self.mixture: Mixture | None = None
        self.parts, self.knows_parts = model_parts(model)
        # By name: a spawned process has other parameter objects.
        self._learns = {name for name, p in model.named_parameters() if p.requires_grad}
        self._waiting: set[str] = set()  # of these, those that are frozen for now
        self._ema, self._dropout = ema, dropout
        self.average: Average | None = None
        if ema:
            self.average = Average(self.learned(), ema)

    @property
    def model(self) -> nn.Module:
        """The model that learns."""
        return self._held[0]

    @property
    def is_plain(self) -> bool:
        """Whether all of its options have their defaults."""
        options = (self.mixup, self.cutmix, self._ema, self.weight_decay, self._dropout)
        return options == (0.0, 0.0, 0.0, None, None)

    def _check(self, name: str, value: Any, good: bool, expected: str) -> None:
        if not good:
            raise ConfigError(f"{type(self).__name__}: {name} is {value}; expected {expected}.")

    def freeze(self, learns: Callable[[Part, str], bool]) -> None:
        """Freezes every parameter for which `learns(part, name)` is False.

        Raises:
            ConfigError: the model has neither an encoder nor a head.
        """
        self.must_know_parts()
        for part in self.parts:
            for name, parameter in part.parameters.items():
                if not learns(part, name):
                    parameter.requires_grad_(False)
                    self._learns.discard(name)

    @property
    def pretrained(self) -> list[Part]:
        """The stages of the encoder, stem first."""
        return [part for part in self.parts if part.pretrained]

    def must_know_parts(self) -> None:
        """Refuses a model that does not say which of its parts is pretrained.

        Raises:
            ConfigError: the model has neither an encoder nor a head.
        """
        if not self.knows_parts:
            raise ConfigError(
                f"Strategy {type(self).__name__} must know which part of the model is pretrained: its encoder, or all "
                f"but its head, and {type(self.model).__name__} has neither. Use build_classifier, or "
                "with_features(module)."
            )

    def stages(self) -> list[Part]:
        """The stages of the encoder, stem first.

        Raises:
            ConfigError: the encoder's stages are not known.
        """
        self.must_know_parts()
        if len(self.pretrained) < 2:
            raise ConfigError(
                f"{type(self).__name__} treats the stages of an encoder differently, and those of "
                f"{type(self.model).__name__} are not known. It works on timm encoders (build_classifier, "
                "build_segmenter); full, head, norms and lora work on any network."
            )
        return self.pretrained

    def on_progress(self, progress: float) -> None:
        """Called before each pass with the fraction of training done, in [0, 1]."""

    def watching(self) -> AbstractContextManager[None]:
        """Within it, the adapter computes its losses: for strategies that change or watch the model's passes."""
        return nullcontext()

    def penalties(self) -> dict[str, Tensor]:
        """Terms to add to the loss of the passes just watched, by name: scalars."""
        return {}

    def mixed(self, source: Batch | None) -> Batch | None:
        """The source batch, its images mixed if `mixup` or `cutmix` say so; `mixture` then holds the shares.

        Args:
            source: a labelled batch in training.
        """
        self.mixture = None
        if source is None or source.label is None or not self.training or not (self.mixup or self.cutmix):
            return source
        image, order, share = self.mix(source.image)
        if share < 1:
            self.mixture = Mixture(source.label, order, share)
        return dataclasses.replace(source, image=image)

    def mix(self, image: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mixes each image with another of the batch, as `mixup` or `cutmix` say.

        Args:
            image: (B, ...) of a training batch.

        Returns:
            The mixed images, the indices (B,) of the others, and the share of the first in each.

        Raises:
            ConfigError: boxes were asked of features, which have no pixels.
        """
        cut = bool(self.cutmix) and (not self.mixup or bool(torch.rand(()) < 0.5))
        alpha = self.cutmix if cut else self.mixup
        share = float(Beta(alpha, alpha).sample())
        order = torch.randperm(len(image)).to(image.device)
        if not cut:
            return share * image + (1 - share) * image[order], order, share
        if image.ndim < 4:
            raise ConfigError(
                f"{type(self).__name__}: cutmix pastes boxes of images, but its input is features."
            )
        height, width = image.shape[-2:]
        side = (1 - share) ** 0.5
        sizes = (round(height * side), round(width * side))
        top, left = (
            int(torch.randint(n, ())) - size // 2 for n, size in zip((height, width), sizes, strict=True)
        )
        rows = slice(max(top, 0), min(top + sizes[0], height))
        columns = slice(max(left, 0), min(left + sizes[1], width))
        mixed = image.clone()
        mixed[..., rows, columns] = image[order][..., rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, order, 1 - area / (height * width)

    def group(self, part: Part, lr: float) -> dict[str, Any]:
        """Optimiser settings of a part: `lr`, and whatever `learning_rate` needs to know about it."""
        return {"lr": lr}

    def keep_frozen(self, module: nn.Module) -> None:
        """Freezes a module of the model in addition, such as a head that a method keeps.

        Args:
            module: the module.
        """
        kept = {id(p) for p in module.parameters()}
        module.requires_grad_(False)
        self._learns -= {name for name, p in self.model.named_parameters() if id(p) in kept}

    def learns(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter of the model learns at some time of the training.

        Args:
            name: in the model.
            parameter: of that name.
        """
        return name in self._learns and (parameter.requires_grad or name in self._waiting)

    @property
    def head_learns(self) -> bool:
        """Whether any part above the encoder learns."""
        new = (part.parameters for part in self.parts if not part.pretrained)
        return any(self.learns(name, p) for parameters in new for name, p in parameters.items())

    def learning(self) -> list[nn.Parameter]:
        """The model's parameters that learn at some time of the training, and those that the strategy adds."""
        return [p for n, p in self.model.named_parameters() if self.learns(n, p)] + list(self.parameters())

    def param_groups(self, lr: float, scale: Callable[[Part], float] = lambda _: 1.0) -> list[dict[str, Any]]:
        """Trainable parameters, grouped by learning rate and weight decay.

        Args:
            lr: learning rate.
            scale: factor of a method for the rate of each part.
        """
        groups: dict[Any, dict[str, Any]] = {}
        for part in self.parts:
            for name, parameter in part.parameters.items():
                if not self.learns(name, parameter):
                    continue
                settings = self.group(part, lr * scale(part))
                if parameter.ndim < 2 or self._exempt(name):
                    settings["weight_decay"] = 0.0
                elif self.weight_decay is not None:
                    settings.setdefault("weight_decay", self.weight_decay)
                groups.setdefault(tuple(settings.items()), {**settings, "params": []})["params"].append(
                    parameter
                )
        return list(groups.values())

    def _exempt(self, name: str) -> bool:
        network = getattr(getattr(self.model, "encoder", None), "network", None)
        names = (
            network.no_weight_decay() if network is not None and hasattr(network, "no_weight_decay") else ()
        )
        return any(name == f"encoder.network.{other}" for other in names)

    def plan(self, lr: float) -> list[dict[str, Any]]:
        """What will learn, to be shown before training: one row per part, two if only some of it learns."""
        rates = {id(p): group["lr"] for group in self.param_groups(lr) for p in group["params"]}
        norms = set(batch_norms(self.model))
        with modes_kept(self.model):
            self.model.train()
            self.hold()
            modes = {
                name: "train" if layer.training else "eval"
                for name, layer in self.model.named_modules()
                if layer in norms
            }
        rows = []
        for part in self.parts:
            both = len({id(p) in rates for p in part.parameters.values()}) == 2
            for learns in (False, True):
                chosen = {k: p for k, p in part.parameters.items() if (id(p) in rates) == learns}
                if not chosen:
                    continue
                owners = dict.fromkeys(name.rpartition(".")[0] for name in chosen)
                rate = max((rates[id(p)] for p in chosen.values() if id(p) in rates), default=0.0)
                rows.append(
                    {
                        "part": part.name + (f": {self.trained_part if learns else 'rest'}" if both else ""),
                        "layers": len(owners),
                        "parameters": sum(p.numel() for p in chosen.values()),
                        "trained": "yes" if learns else "no",
                        "learning rate": f"{rate:.2g}" if learns else "-",
                        "BatchNorm": ", ".join(sorted({modes[o] for o in owners if o in modes})) or "-",
                    }
                )
        return rows

    def hold(self) -> None:
        """Keeps frozen modules of the model in eval mode; called after each change to training mode."""
        _hold(self.model)

    def learned(self) -> dict[str, Tensor]:
        """The tensors to average: weights and buffers of the model."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the model's weights hold all that has been learnt."""
        yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, the model is the one to predict with: it holds its averaged weights, if there are any."""
        average = self.average if self.average is not None and not self.average.done else None
        with nullcontext() if average is None else average.swapped(self.learned()), self.applied():
            yield

    def on_fit_start(
        self, loaders: Mapping[str, Iterable[Batch]], criterion: nn.Module | None = None
    ) -> None:
        """Called once before the first step of a training, see `Adapter.on_fit_start`.

        Args:
            loaders: `source` yields every labelled training case once, in order, without augmentation.
            criterion: the source's loss, if it is not plain cross-entropy.
        """

    def on_step_end(self) -> None:
        """Updates the average after a step."""
        if self.average is not None:
            self.average.update(self.learned())

    def finish(self) -> None:
        """Leaves in the model all that was learnt: averaged weights, if there are any."""
        if self.average is not None:
            self.average.copy_to(self.learned())
            self.average.done.fill_(True)


def _hold(module: nn.Module) -> None:
    """Puts every module without a trainable parameter into eval mode: its statistics and dropout stay fixed."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _hold(child)
