"""Test-time adaptation: to scans as they come, from a trained model and those scans alone.

    for group in groups:                      # a case, the scans of a patient, or those of a site
        adapter.reset()
        for image in batches_of(group):
            adapter.adapt_batch(image)
        predict(adapter.predictor, group)     # in eval mode

`medtl.fit` does not train such a method. It starts from a model that was trained on the source.

BatchNorm with `statistics=target`: while adapting, each batch is normalised by its own statistics; afterwards the model
predicts with running statistics averaged over the group's batches. Published methods predict each batch with its own
statistics, so that a case's prediction depends on its neighbours in the batch; here it does not. The group needs many
images for that. With `statistics=running` the source's statistics stay.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter, StartsFrom
from medtl.adapters.contract.norm import Statistics
from medtl.adapters.contract.parts import in_eval_mode, normalised_by_batch
from medtl.adapters.contract.phase import Phase
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.output import Output
from medtl.models.parts import batch_norms

Reset = Literal["case", "patient", "site", "never"]
_OPTIMIZER = "optimizer."
_NO_STATE = ("training", "kept", "remarks", "_start", "_adapted")
_PLAIN = (bool, int, float, str, type(None))


class TestTimeAdapter(Adapter):
    """Adapts to a group of cases when it predicts them.

    Args:
        model: trained on the source.
        adapted: the parameters of `model` that adapt.
        lr: learning rate of the method's own optimiser.
        steps: updates per batch.
        reset: when everything returns to its start: for each case, patient or site, or never. With `never`, batches of
            cases are predicted in their order, each after the method has adapted to it, and a run keeps where it ended.
        statistics: which BatchNorm statistics to use, see above.

    Attributes:
        reset_per: the argument `reset`.
        step: number of updates since the last reset.
        kept: the state after the last group, with which a finished run goes on; None before there was one.
        remarks: what the report must say about the groups that were predicted.

    Raises:
        ConfigError: a hyper-parameter out of its range.
    """

    __test__: ClassVar[bool] = False  # tells pytest that this is no test class, despite its name
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    starts_from: ClassVar[StartsFrom] = "source_only"
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "segmentation"})
    phases: ClassVar[tuple[Phase, ...]] = ()
    step: Tensor
    seen: Tensor

    def __init__(
        self,
        model: nn.Module,
        adapted: Sequence[nn.Parameter],
        *,
        lr: float,
        steps: int = 1,
        reset: Reset = "site",
        statistics: Statistics = "target",
    ) -> None:
        super().__init__(model)
        name = type(self).__name__
        if not lr > 0 or steps < 1:
            raise ConfigError(
                f"{name}: lr is {lr} and steps is {steps}; expected lr above 0 and at least 1 step."
            )
        if reset not in get_args(Reset):
            raise ConfigError(f"{name}: reset is {reset!r}; expected {', '.join(get_args(Reset))}.")
        self.lr, self.steps, self.reset_per = lr, steps, reset
        if statistics not in get_args(Statistics):
            raise ConfigError(f"{name}: statistics is {statistics!r}; expected running or target.")
        self.by_batch = statistics == "target"
        self._adapted = list(adapted)
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0))
        self.optimizer = self.make_optimizer(self._adapted)
        self.kept: dict[str, Tensor] | None = None
        self.remarks: list[str] = []
        # Made at first use, so that it holds what the method's own constructor adds, such as a teacher.
        self._start: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    @abstractmethod
    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Returns `loss` of a batch (N, C, *S) and its parts; called in the mode used for adapting."""

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Makes a new optimiser, one for each group."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def after_step(self) -> None:
        """Called after each update: for a teacher, restored weights, or running values."""

    def can_adapt(self, images: Tensor) -> bool:
        """Whether there are enough images (N, C, *S): a classifier's BatchNorm cannot normalise a single one."""
        segments = getattr(self.model, "task", None) == "segmentation" or self.tasks == {"segmentation"}
        alone = len(images) == 1 and images.ndim == 4
        return not (alone and self.by_batch and not segments and batch_norms(self.model))

    def adapt_batch(self, image: Tensor) -> Output:
        """Adapts to one batch (N, C, *S) of the group.

        Returns:
            The predictor's output before the update, without a gradient.

        Raises:
            DataError: a single image, which a classifier with BatchNorm cannot normalise.
        """
        self._remember_start()
        self._check_batch(image)
        parameters = self._trainable()
        with torch.enable_grad():
            self.seen += len(image)
            share = len(image) / int(self.seen)
            with torch.no_grad(), self._mode(share):
                before: Output = self.model(image)
            if self.predictor is not self.model:
                with torch.no_grad(), self._mode(share, self.predictor):
                    before = self.predictor(image)
            if before.logits.ndim > 2:
                self._check_task("segmentation")
            for _ in range(self.steps):
                with self._mode():
                    loss = self._counted(image)["loss"]
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                with torch.no_grad():
                    self.after_step()
        return before

    @torch.no_grad()
    def reset(self) -> None:
        """Returns everything to its exact start: all networks, buffers, plain attributes and the optimiser."""
        self._remember_start()
        assert self._start is not None
        tensors, values = self._start
        super().load_state_dict(tensors)
        self.__dict__.update(copy.deepcopy(values))
        self.optimizer = self.make_optimizer(self._adapted)

    def keep(self) -> None:
        """Stores the present state in `kept`."""
        state = {k: v.detach().clone() for k, v in self.state_dict().items()}
        for place, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    state[f"{_OPTIMIZER}{place}.{key}"] = value.detach().clone()
        self.kept = state

    def fits(self, kept: Mapping[str, Tensor]) -> bool:
        """Whether `kept`, read from a file, is a state of this method and network."""
        own = {k: v.shape for k, v in self.state_dict().items()}
        moments = {k: v for k, v in kept.items() if k.startswith(_OPTIMIZER)}
        if own != {k: v.shape for k, v in kept.items() if k not in moments}:
            return False
        for name, value in moments.items():
            place, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            if not place.isdecimal() or int(place) >= len(self._adapted) or not key:
                return False
            if value.ndim and value.shape != self._adapted[int(place)].shape:
                return False
        return True

    @torch.no_grad()
    def resume(self) -> bool:
        """Goes on from `kept`.

        Returns:
            Whether there was anything to go on from.
        """
        self._remember_start()
        if self.kept is None:
            return False
        super().load_state_dict({k: v for k, v in self.kept.items() if not k.startswith(_OPTIMIZER)})
        self.optimizer = self.make_optimizer(self._adapted)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in self.kept.items():
            if name.startswith(_OPTIMIZER):
                place, _, key = name.removeprefix(_OPTIMIZER).partition(".")
                moments.setdefault(int(place), {})[key] = value.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        return True

    def forward(
        self, source: Batch | None, target: Batch | None, *, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Computes the loss of a target batch, for your own training loop; ignores the source."""
        self._remember_start()
        image = self._given(target, "target").image
        self._check_batch(image)
        with self._mode():
            return self._counted(image)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters that adapt, at `lr`."""
        return [{"params": self._trainable(), "lr": lr}]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads as torch does; the loaded state becomes the new start."""
        keys = super().load_state_dict(state_dict, *args, **kwargs)
        self._start = None
        self.optimizer = self.make_optimizer(self._adapted)
        self._remember_start()
        return keys

    def _remember_start(self) -> None:
        if self._start is None:
            tensors = {k: v.detach().clone() for k, v in self.state_dict().items()}
            values = {k: copy.deepcopy(v) for k, v in vars(self).items() if _is_state(k, v)}
            self._start = tensors, values

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self._adapted if p.requires_grad]

    def _counted(self, image: Tensor) -> dict[str, Tensor]:
        losses = self.losses(image)
        self.step += 1
        return losses

    def _mode(self, momentum: float = 0.0, network: nn.Module | None = None) -> AbstractContextManager[None]:
        network = self.model if network is None else network
        return normalised_by_batch(network, momentum) if self.by_batch else in_eval_mode(network)

    def _check_batch(self, image: Tensor) -> None:
        if not self.can_adapt(image):
            raise DataError(
                f"{type(self).__name__} got one image, and the model has BatchNorm: the statistics of a single image "
                "erase the evidence for its class. Give it more images at once (reset=site, a larger batch)."
            )


def _is_state(name: str, value: Any) -> bool:
    """Whether an attribute may be state that a method keeps outside of its buffers: numbers, text, or collections."""
    if name in _NO_STATE or name.startswith(("_forward", "_backward")):
        return False
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, dict):
        return not name.startswith("_") and all(_is_state("", v) for v in value.values())
    return isinstance(value, list | tuple) and all(_is_state("", v) for v in value)
