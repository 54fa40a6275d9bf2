"""Heads in a weights file: a description is data from anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medtl.errors import CheckpointError
from medtl.models.heads import LAYERS, CosineHead, build_head, describe_head


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(6, 3),
        nn.Linear(6, 3, bias=False),
        nn.Conv3d(6, 2, 1),
        CosineHead(6, 3, temperature=0.1),
        nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3)),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_head_comes_back_from_its_description(head: nn.Module) -> None:
    again = build_head(describe_head(head))
    again.load_state_dict(head.state_dict())
    features = torch.rand(4, 6, *([1] * 3 if isinstance(head, nn.Conv3d) else []))
    torch.testing.assert_close(again.eval()(features), head.eval()(features))
    assert next(again.parameters()).device.type == "cpu"


def test_a_layer_of_ones_own_has_no_description() -> None:
    class Own(nn.Linear):
        pass

    assert describe_head(Own(6, 3)) is None
    assert describe_head(nn.Sequential(nn.Linear(6, 6), Own(6, 3))) is None


@pytest.mark.parametrize(
    "described",
    [
        None,
        [],
        {},
        {"Linear": {"in_features": 1 << 20, "out_features": 1 << 20}},
        {"CosineHead": {"in_features": 1 << 20, "out_features": 1 << 20}},
        {"Conv3d": {"in_channels": 1000, "out_channels": 1000, "kernel_size": [100, 100, 100]}},
        {"Sequential": [{"Linear": {"in_features": 1 << 14, "out_features": 1 << 14}}] * 2},
        {"Linear": {"in_features": 1 << 21, "out_features": 1}},
        {"Linear": {"in_features": -1, "out_features": 2}},
        {"Linear": {"in_features": "6", "out_features": 2}},
        {"Linear": {"in_features": 6, "out_features": 2, "code": "x"}},
        {"Upsample": {"scale_factor": 1000}},
        {"Module": {}},
        {"os.system": {"command": "true"}},
        {"Sequential": [{"Identity": {}}] * 65},
        {"Sequential": [{"Sequential": [{"Sequential": [{"Sequential": [{"Sequential": []}]}]}]}]},
    ],
    ids=lambda described: str(described)[:60],
)
def test_other_descriptions_are_refused_before_memory_is_taken(described: object) -> None:
    with pytest.raises(CheckpointError, match="head in the weights' header"):
        build_head(described)


def test_no_layer_has_a_size_without_values() -> None:
    """What makes its output larger than its input would take memory that no count of values shows."""
    assert not any("Upsample" in name for name in LAYERS)
