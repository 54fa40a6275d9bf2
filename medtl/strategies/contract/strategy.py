"""The contract of a fine-tuning strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from medtl.adapters.contract.norm import batch_norms, modes_kept
from medtl.adapters.finetune import FineTune
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.output import Output
from medtl.strategies.contract.average import Average
from medtl.strategies.contract.stages import Part, model_parts


class Strategy(FineTune):
    """Fine-tunes a pretrained model on the source's labels; subclasses decide what learns, and how fast.

    "The head" means every layer that is not pretrained: the linear head, a dense layer or attention pooling before it,
    or the decoder of a segmentation network. Frozen parts get no gradient, stay in eval mode, and end bit for bit as
    they began, including BatchNorm statistics. Biases, norm scales and what timm exempts get no weight decay (He et
    al. 2019, section 3.1).

    Args:
        model: a `Classifier`, or any network that returns `Output(logits, features)`.
        label_smoothing: share of the target distribution that is spread over all classes, in [0, 1).
        dropout: probability of dropping a feature before the head; None keeps the model's own.
        weight_decay: weight decay of AdamW; None keeps that of the training.
        mixup: alpha of Beta(alpha, alpha), the share of two mixed images (Zhang et al. 2018); 0 is off, 0.2 is usual.
        cutmix: alpha of the share of a pasted box (Yun et al. 2019); 0 is off, 1 is usual. If both are on, each batch
            uses one of them, chosen at random.
        ema: decay of a moving average of the weights, which is validated and saved; 0 is off, 0.99 to 0.9999 are usual.

    Attributes:
        on_features: whether it can train on features computed once, because the encoder never changes.
        argument: the hyper-parameter that may follow a colon in the name, as in `last:2`.
        views: number of augmented views of each case that a strategy on features uses.
        parts: the encoder's stages, stem first, then the new parts.

    Raises:
        ConfigError: a hyper-parameter out of its range, or one that the model cannot use.
    """

    kind: ClassVar[str] = "strategies"
    on_features: ClassVar[bool] = False
    argument: ClassVar[str | None] = None
    trained_part: ClassVar[str] = "some"
    views: int = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        label_smoothing: float = 0.0,
        dropout: float | None = None,
        weight_decay: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        ema: float = 0.0,
    ) -> None:
        super().__init__(model, label_smoothing=label_smoothing)
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
        self.parts = model_parts(model, type(self).__name__)
        # By name: a spawned process has other parameter objects.
        self._learns = {name for name, p in model.named_parameters() if p.requires_grad}
        self.average = Average(self.learned(), ema) if ema else None

    def _check(self, name: str, value: Any, good: bool, expected: str) -> None:
        if not good:
            raise ConfigError(f"{type(self).__name__}: {name} is {value}; expected {expected}.")

    def freeze(self, learns: Callable[[Part, str], bool]) -> None:
        """Freezes every parameter for which `learns(part, name)` is False."""
        for part in self.parts:
            for name, parameter in part.parameters.items():
                if not learns(part, name):
                    parameter.requires_grad_(False)
                    self._learns.discard(name)

    @property
    def pretrained(self) -> list[Part]:
        """The stages of the encoder, stem first."""
        return [part for part in self.parts if part.pretrained]

    def stages(self) -> list[Part]:
        """The stages of the encoder, stem first.

        Raises:
            ConfigError: the encoder's stages are not known.
        """
        if len(self.pretrained) < 2:
            raise ConfigError(
                f"{type(self).__name__} treats the stages of an encoder differently, and those of "
                f"{type(self.model).__name__} are not known. It works on timm encoders (build_classifier, "
                "build_segmenter); full, head, norms and lora work on any network."
            )
        return self.pretrained

    def forward(
        self, source: Batch | None, target: Batch | None = None, *, progress: float
    ) -> dict[str, Tensor]:
        """Computes the source's loss and the strategy's penalties; `target` is not used."""
        source = self._given(source, "source")
        if source.label is None:
            raise DataError(f"{type(self).__name__} needs labels in the source batch, and it has none.")
        image, label, share = source.image, source.label, 1.0
        if self.training and (self.mixup or self.cutmix):
            image, order, share = self.mix(image)
        output = self.output(image)
        loss = self.supervised_loss(output.logits, label)
        if share < 1:  # valid because every loss here is linear in the target
            loss = share * loss + (1 - share) * self.supervised_loss(output.logits, label[order])
        added = self.penalties(output)
        total = loss + sum(added.values())
        return {"loss": total, "source_loss": loss.detach(), **{k: v.detach() for k, v in added.items()}}

    def output(self, image: Tensor) -> Output:
        """Runs the model that learns."""
        output: Output = self.model(image)
        return output

    def penalties(self, output: Output) -> dict[str, Tensor]:
        """Terms to add to the loss, by name: scalars."""
        return {}

    def supervised_loss(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """As `Adapter.supervised_loss`; label smoothing applies to a `criterion` too."""
        loss = super().supervised_loss(logits, label)
        if self.criterion is None or not self.label_smoothing or label is None or label.is_floating_point():
            return loss
        others = (torch.where(label < 0, label, k) for k in range(logits.shape[1]))
        uniform = torch.stack(
            [super(Strategy, self).supervised_loss(logits, other) for other in others]
        ).mean()
        return (1 - self.label_smoothing) * loss + self.label_smoothing * uniform

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

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Trainable parameters, grouped by learning rate and weight decay."""
        groups: dict[Any, dict[str, Any]] = {}
        for part in self.parts:
            for name, parameter in part.parameters.items():
                if name not in self._learns:
                    continue
                settings = self.group(part, lr)
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
        with modes_kept(self):
            self.train()
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

    def train(self, mode: bool = True) -> Strategy:
        """Sets the mode; frozen modules stay in eval mode."""
        super().train(mode)
        if mode:
            _hold(self.model)
        return self

    def learned(self) -> dict[str, Tensor]:
        """The tensors to average: weights and buffers of the model."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @contextmanager
    def on_source(self) -> Iterator[None]:
        """Within it, the model holds its averaged weights, if there are any."""
        if self.average is None:
            yield
        else:
            with self.average.swapped(self.learned()):
                yield

    def on_step_end(self) -> None:
        """Updates the average after a step."""
        if self.average is not None:
            self.average.update(self.learned())

    def on_fit_end(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        """Leaves the averaged weights in the model."""
        super().on_fit_end(loaders)
        if self.average is not None:
            self.average.copy_to(self.learned())


def _hold(module: nn.Module) -> None:
    """Puts every module without a trainable parameter into eval mode: its statistics and dropout stay fixed."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _hold(child)
