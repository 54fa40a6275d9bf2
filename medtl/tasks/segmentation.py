"""Segmentation, from masks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader

from medtl.adapters import Adapter
from medtl.data.cases.table import Case
from medtl.data.cohort import Cohort
from medtl.data.tensors.batch import collate
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.spec import Preprocess
from medtl.evaluation import SegmentationTable
from medtl.models import Segmenter, build_segmenter
from medtl.models.device import default_device
from medtl.models.losses.segmentation import SegmentationLoss
from medtl.models.networks import choose_network
from medtl.models.parts import modes_kept
from medtl.prediction.mask_writer import MaskWriter
from medtl.prediction.segment import adapt_cases, segment_cases
from medtl.runs import Run
from medtl.selection.decide import Decision, recommend_masks
from medtl.tasks.task import Labelled, Predictions, Task
from medtl.training.validation import Validation

_TIMED = 4
"""Number of cases segmented to measure the time per case."""


class Segmentation(Task):
    """One class per voxel: the background and the structures."""

    name: ClassVar[str] = "segmentation"
    keep_spacing: ClassVar[bool] = True

    def check(self) -> None:
        """Refuses an unknown loss."""
        SegmentationLoss(self.config.loss)

    def build(self, encoder: str, num_classes: int, preprocess: Preprocess, seed: int) -> Segmenter:
        """A segmentation network."""
        return build_segmenter(
            encoder,
            num_classes,
            network=choose_network(self.config.network, preprocess.spatial_dims),
            weights=self.config.weights,
            in_channels=preprocess.channels,
            seed=seed,
        )

    def samples(self, cohort: Cohort) -> dict[str, Any]:
        """Patches of a size that suits the scans and the network."""
        network = choose_network(self.config.network, cohort.cache.preprocess.spatial_dims)
        return {"patch": cohort.patch(self.config.image_size, cube=network == "unet_3d")}

    def loss(self, cohort: Cohort, cases: Sequence[Case]) -> SegmentationLoss:
        """The named loss; structures that are rare in these cases get a higher weight."""
        return SegmentationLoss.balanced(self.config.loss, cohort.voxel_counts(cases))

    @torch.no_grad()
    def accuracy(self, adapter: Adapter, data: Labelled, batch_size: int) -> float | None:
        """Mean Dice of the structures in patches, as in the training log."""
        tally, device = Validation(adapter.supervised_loss), default_device()
        with modes_kept(adapter):
            adapter.to(device).eval()
            for batch in DataLoader(data.plain(), batch_size=batch_size, collate_fn=collate):
                if (label := batch.inner_label) is not None:
                    tally.add(adapter.predictor(batch.image.to(device)).logits, label.to(device))
        return tally.compute().get("validation_dice")

    def predict_some(self, adapter: Adapter, data: CaseDataset, **samples: Any) -> int:
        """Segments whole scans by sliding windows."""
        return len(list(itertools.islice(segment_cases(adapter.predictor, data, **samples), _TIMED)))

    def header(self, cohort: Cohort) -> Mapping[str, Any]:
        """The mask values and the window size."""
        return {"labels": cohort.table.labels, **self.samples(cohort)}

    def predictions(self, run: Run, cohort: Cohort) -> Predictions:
        """Masks in each scan's own grid, and the table of their paths."""
        assert cohort.table.labels is not None
        return MaskPredictions(MaskWriter(run.folder, cohort.table.labels), self.samples(cohort))

    @property
    def note(self) -> str:
        """The loss by name."""
        return f"Loss {self.config.loss}."


class MaskPredictions(Predictions):
    """Masks, written case by case.

    Args:
        writer: of the run.
        samples: the windows, as `segment_cases` takes them.
    """

    def __init__(self, writer: MaskWriter, samples: Mapping[str, Any]) -> None:
        self.writer, self.samples = writer, samples

    def add(
        self, adapter: Adapter, data: CaseDataset, model: str, seed: int, *, candidate: bool = True
    ) -> None:
        """Writes the masks of cases."""
        if data.cases[0].domain == "source":
            with adapter.on_source():
                found = segment_cases(adapter.predictor, data, **self.samples)
                self.writer.add(found, model, seed, candidate=candidate)
        else:
            self.writer.add(adapt_cases(adapter, data, **self.samples), model, seed, candidate=candidate)

    def finish(self) -> SegmentationTable:
        """Writes `predictions.csv`, `voxels.csv` and `labels.json`."""
        return self.writer.finish()

    def recommend(self, reference: str) -> Decision:
        """Decides from source validation and the predictions for the target."""
        structures = tuple(self.writer.labels.structures)
        return recommend_masks(self.writer.evidence, structures, reference=reference)
