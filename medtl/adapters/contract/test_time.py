"""Test-time adaptation: to the scans of one patient or site, from a trained model and those scans alone.

    for group in groups:                      # the scans of a patient, or of a site
        adapter.reset()
        for image in batches_of(group):
            adapter.adapt_batch(image)
        predict(adapter.model, group)         # in eval mode

`medtl.fit` does not train such a method. It starts from a model that was trained on the source.

BatchNorm with `statistics=target`: while adapting, each batch is normalised by its own statistics; afterwards `model`
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

from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.norm import Statistics, batch_norms
from medtl.adapters.contract.parts import in_eval_mode, normalised_by_batch
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError
from medtl.models.output import Output

Reset = Literal["patient", "site"]


class TestTimeAdapter(Adapter):
    """Adapts to a group of cases when it predicts them.

    Args:
        model: trained on the source.
        adapted: the parameters of `model` that adapt.
        lr: learning rate of the method's own optimiser.
        steps: updates per batch.
        reset: the model returns to its start for each patient or for each site.
        statistics: which BatchNorm statistics to use, see above.

    Attributes:
        reset_per: the argument `reset`.
        step: number of updates since the last reset.
    """

    __test__: ClassVar[bool] = False  # tells pytest that this is no test class, despite its name
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
                f"{name}: lr is {lr} and steps is {steps}; expected lr above 0 and at least 1 step."
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
        """Returns `loss` of a batch (N, C, *S) and its parts; called in the mode used for adapting."""

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Makes a new optimiser, one for each group."""
        return torch.optim.Adam(parameters, lr=self.lr)

    def adapt_batch(self, image: Tensor) -> Output:
        """Adapts to one batch (N, C, *S) of the group.

        Returns:
            The model's output before the update, without a gradient.

        Raises:
            DataError: a single image, which a classifier with BatchNorm cannot normalise.
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
        """Returns model and optimiser to their exact start."""
        self.model.load_state_dict(self._start)
        self.optimizer = self.make_optimizer(self._adapted)
        self.step.zero_()
        self.seen.zero_()

    def forward(
        self, source: Batch | None, target: Batch | None, *, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Computes the loss of a target batch, for your own training loop; ignores the source."""
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
                "erase the evidence for its class. Give it more images at once (reset=site, a larger batch)."
            )
