"""Adaptation at test time: to the scans of one patient or site, from a trained model and those scans alone.

    for group in groups:                      # the scans of a patient, or of a site
        adapter.reset()
        for image in batches_of(group):
            adapter.adapt_batch(image)
        predict(adapter.model, group)         # in eval mode

Such a method is not trained by `medtl.fit`. It starts from a model that was trained on the source.

How BatchNorm behaves with `statistics=target`: while adapting, each batch is normalised by itself; the running
statistics that `model` predicts with afterwards are the average over the group's batches. Published methods predict
each batch by its own statistics, so that the answer for a case depends on its neighbours in the batch; here it does
not. A group must have many images for that. With `statistics=running` the source's statistics stay.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.norm import Statistics, batch_norms
from medtl.adapters.contract.parts import in_eval_mode, normalised_by_batch
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.output import Output

Reset = Literal["patient", "site"]


class TestTimeAdapter(Adapter):
    """Adapts to a group of cases when they are predicted.

    Args:
        model: trained on the source.
        adapted: the parameters of `model` that adapt.
        lr: learning rate of the method's own optimiser.
        steps: updates a batch.
        reset: what a group is: the model goes back to its start for each patient, or for each site.
        statistics: BatchNorm's, see above.

    Attributes:
        reset_per: the argument `reset`.
        step: updates since the last reset.
    """

    __test__: ClassVar[bool] = False  # for pytest: not a test, for all its name
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "segmentation"})
    test_time: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    step: Tensor
    seen: Tensor

    def __init__(
        self,
        model: nn.Module,
        adapted: Sequence[nn.Parameter],
        *,
        lr: float,
        steps: int,
        reset: Reset,
        statistics: Statistics = "target",
    ) -> None:
        super().__init__(model)
        name = type(self).__name__
        if not lr > 0 or steps < 1:
            raise ConfigError(
                f"{name}: lr is {lr} and steps {steps}; expected a number above 0 and at least 1."
            )
        if reset not in get_args(Reset):
            raise ConfigError(f"{name}: reset is {reset!r}; expected patient or site.")
        self.lr, self.steps, self.reset_per = lr, steps, reset
        if statistics not in get_args(Statistics):
            raise ConfigError(f"{name}: statistics is {statistics!r}; expected running or target.")
        self.by_batch = statistics == "target"
        self._adapted = list(adapted)
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0))
        self._keep_start()

    @abstractmethod
    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """`loss` of a batch (N, C, *S), and its parts; called within the mode that adapting takes."""

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new optimiser; one a group."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def adapt_batch(self, image: Tensor) -> Output:
        """Adapts to one batch (N, C, *S) of the group.

        Returns:
            What the model said before the update, without a gradient.

        Raises:
            DataError: one image alone, which BatchNorm of a classifier cannot judge.
        """
        self._check_batch(image)
        parameters = self._trainable()
        with torch.enable_grad():
            self.seen += len(image)
            with torch.no_grad(), self._mode(len(image) / int(self.seen)):
                before: Output = self.model(image)
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
        return before

    @torch.no_grad()
    def reset(self) -> None:
        """Takes model and optimiser back to where they started, exactly."""
        self.model.load_state_dict(self._start)
        self.optimizer = self.make_optimizer(self._adapted)
        self.step.zero_()
        self.seen.zero_()

    def forward(
        self, source: Batch | None, target: Batch | None, *, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The loss of a target batch, for a loop of your own; the source is not used."""
        image = self._given(target, "target").image
        self._check_batch(image)
        with self._mode():
            return self._counted(image)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters that adapt, at `lr`."""
        return [{"params": self._trainable(), "lr": lr}]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch; what is loaded is the new start."""
        keys = super().load_state_dict(state_dict, *args, **kwargs)
        self._keep_start()
        return keys

    def _keep_start(self) -> None:
        self._start = copy.deepcopy(self.model.state_dict())
        self.optimizer = self.make_optimizer(self._adapted)

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self._adapted if p.requires_grad]

    def _counted(self, image: Tensor) -> dict[str, Tensor]:
        losses = self.losses(image)
        self.step += 1
        return losses

    def _mode(self, momentum: float = 0.0) -> AbstractContextManager[None]:
        return normalised_by_batch(self.model, momentum) if self.by_batch else in_eval_mode(self.model)

    def _check_batch(self, image: Tensor) -> None:
        segments = getattr(self.model, "task", None) == "segmentation" or self.tasks == {"segmentation"}
        if len(image) == 1 and image.ndim == 4 and self.by_batch and not segments and batch_norms(self.model):
            raise DataError(
                f"{type(self).__name__} got one image, and the model has BatchNorm: the statistics of a single image "
                "erase what tells its class. Give it more images at once (reset=site, a larger batch)."
            )
