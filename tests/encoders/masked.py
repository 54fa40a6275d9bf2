"""A cohort with masks, and encoders that see them or do not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import medtl
from tests.helpers.masks import write_masked_site


def masked_cohort(folder: Path, num: int = 12) -> medtl.Cohort:
    """Discs with a core, masks of both, 32 pixels each."""
    site = write_masked_site(folder / "site", num)
    cases = medtl.collect_cases(source=[site / "scans"], masks=[site / "masks"])
    preprocess = medtl.suggest_preprocess(cases.items(), 32, keep_spacing=True)
    return medtl.Cohort.prepare(cases, preprocess, folder / "cache")


class Sees(nn.Module):
    """An encoder with two depths: the image itself, and its half; or noise of the same sizes."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind
        self.num_features = 2
        self.weight = nn.Parameter(torch.ones(1))
        self.network = SimpleNamespace(pretrained_cfg={})

    def maps_at(self, image: Tensor) -> dict[str, Tensor]:
        shown = image[:, :1]
        if self.blind:
            shown = torch.rand(shown.shape, generator=torch.Generator().manual_seed(1))
        both = torch.cat([shown, torch.ones_like(shown)], dim=1)
        return {"stage1": both, "stage2": nn.functional.avg_pool2d(both, 2)}

    def forward(self, image: Tensor) -> Tensor:
        return self.maps_at(image)["stage1"].mean((2, 3))
