"""Mean teacher: a moving average of the network labels the target for it."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters.contract.adapter import Adapter, Common
from medtl.adapters.contract.parts import classes_of, normalised_by_batch
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError, DataError

PredictWith = Literal["teacher", "student"]


class MeanTeacher(Adapter):
    """Learns the confident pseudo-labels of a moving-average teacher (Tarvainen and Valpola 2017; Sohn et al. 2020).

    The teacher, a moving average of the student's weights and buffers, predicts the plain view of a target batch. The
    student learns these labels on the strongly augmented view, per case or per voxel. Labels below the threshold have
    weight zero but still count in the mean, so the loss fades when the teacher is unsure. The threshold depends on the
    class: `threshold` times the running mean of the teacher's confidence in that class, so that classes on which it is
    never very confident are learned too (after Zhang et al. 2021).

    Args:
        model: `model(image) -> Output(logits, features)`; the student.
        weight: weight of the target's loss.
        ramp_up: fraction of training over which the weight rises to its full value, as exp(-5 (1 - t)^2).
        decay: largest decay of the teacher; at step t it is at most 1 - 1 / (t + 1), so that the first steps are
            forgotten. Use 0.999 for trainings of many thousand steps.
        threshold: confidence that a label must reach, as a fraction of its class's mean; 0 uses every label.
        predict_with: who predicts and is saved, teacher or student.
        norm, statistics, label_smoothing, strategy: see `Adapter`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source", "target", "strong_view"})
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "segmentation"})
    why_not: ClassVar[str] = "its teacher assigns one class to each case or voxel"
    updates: Tensor
    confidence: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        weight: float = 1.0,
        ramp_up: float = 0.4,
        decay: float = 0.99,
        threshold: float = 0.95,
        predict_with: PredictWith = "teacher",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if predict_with not in get_args(PredictWith):
            raise ConfigError(f"MeanTeacher: predict_with is {predict_with!r}; expected teacher or student.")
        for key, value, least in (
            ("weight", weight, 1e-12),
            ("ramp_up", ramp_up, 0),
            ("threshold", threshold, 0),
        ):
            if not least <= value <= (1 if key != "weight" else math.inf):
                raise ConfigError(f"MeanTeacher: {key} is {value}; expected at most 1, and a weight above 0.")
        if not 0 <= decay < 1:
            raise ConfigError(f"MeanTeacher: decay is {decay}; expected at least 0 and below 1.")
        self.weight, self.ramp_up, self.decay = weight, ramp_up, decay
        self.threshold, self.predict_with = threshold, predict_with
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        if predict_with == "teacher":
            self.predictor = self.teacher
        self.register_buffer("updates", torch.tensor(0))
        # Starts at 1: no label passes before its class has been seen.
        self.register_buffer("confidence", torch.ones(classes_of(model, "MeanTeacher")))

    def forward(self, source: Batch | None, target: Batch | None, *, progress: float) -> dict[str, Tensor]:
        """Computes the source's loss and the pseudo-label loss on the target's strong view."""
        source, target = self._given(source, "source"), self._given(target, "target")
        if target.strong is None:
            raise DataError("MeanTeacher needs a strong view in the target batch, and it has none.")
        label, sure = self._labels(target.image)
        student = dataclasses.replace(target, image=target.strong)
        from_source, from_target = self.forward_domains(source, student)
        source_loss = self.supervised_loss(from_source.logits, source.label)
        each = F.cross_entropy(from_target.logits.float(), label, reduction="none")
        target_loss = (each * sure).mean()
        t = min(progress / self.ramp_up, 1.0) if self.ramp_up else 1.0
        weight = self.weight * math.exp(-5 * (1 - t) ** 2)
        return {
            "loss": source_loss + weight * target_loss,
            "source_loss": source_loss.detach(),
            "target_loss": target_loss.detach(),
            "sure": sure.float().mean(),
            "weight": torch.tensor(weight),
        }

    @torch.no_grad()
    def _labels(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's classes and whether each passes the threshold; normalised by the batch, like the student."""
        self.teacher.eval()
        if self.norm == "frozen":
            logits = self.teacher(image).logits
        else:
            with normalised_by_batch(self.teacher):
                logits = self.teacher(image).logits
        best, label = torch.softmax(logits.float(), dim=1).max(dim=1)
        sure = best >= self.threshold * self.confidence[label]
        if self.training:
            chosen = [best[label == k] for k in range(len(self.confidence))]
            mean = torch.stack(
                [p.mean() if len(p) else c for p, c in zip(chosen, self.confidence, strict=True)]
            )
            self.confidence.lerp_(mean, 0.1)
        return label, sure

    @torch.no_grad()
    def on_step_end(self) -> None:
        """Moves the teacher's weights and buffers towards the student's; counters are copied."""
        t = int(self.updates)
        decay = min(1 - 1 / (t + 1), self.decay)
        mine, theirs = self.teacher.state_dict(), self.model.state_dict()
        for key, value in mine.items():
            if value.is_floating_point():
                value.lerp_(theirs[key], 1 - decay)
            else:
                value.copy_(theirs[key])
        self.updates += 1
