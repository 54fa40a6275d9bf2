"""Groups of cases that a test-time method adapts to, and what happens to an image that comes alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medtl.adapters import Batch, TestTimeAdapter, build_adapter
from medtl.data.cases.table import Case
from medtl.errors import DataError
from medtl.prediction.classify import predict_adapted
from medtl.prediction.groups import groups_of
from tests.adapters.toys import domains, network


class Images:
    """Images in memory, with cases."""

    def __init__(self, patients: str, sites: str, seed: int = 0) -> None:
        self.images: Tensor = domains(len(patients), seed)[1].image
        self.cases = [
            Case(case=str(n), patient=p, site=s, domain="target", path=str(n))
            for n, (p, s) in enumerate(zip(patients, sites, strict=True))
        ]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Batch:
        return Batch(image=self.images[int(index)])


def tent(**options: object) -> TestTimeAdapter:
    adapter = build_adapter("tent", network(), **options)
    assert isinstance(adapter, TestTimeAdapter)
    return adapter


@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        ("case", [[0], [1], [2], [3], [4]]),
        ("patient", [[0, 1], [2], [3], [4]]),  # one name at two sites is two patients
        ("site", [[0, 1, 3, 4], [2]]),
        ("never", [[0, 1, 2, 3, 4]]),
    ],
)
def test_groups(reset: str, expected: list[list[int]]) -> None:
    data = Images("ppprs", "aabaa")
    assert groups_of(tent(reset=reset), data.cases) == expected


def test_without_resets_batches_are_even() -> None:
    groups = groups_of(tent(reset="never"), Images("p" * 70, "a" * 70).cases)
    assert [len(group) for group in groups] == [23, 24, 23]
    assert [n for group in groups for n in group] == list(range(70))


def test_an_image_that_comes_alone_has_an_answer() -> None:
    """By the state that a run kept; unadapted without one; each with a remark."""
    group, alone = Images("p" * 12, "a" * 12), Images("q", "a", seed=5)
    adapter = tent(lr=0.05)
    with pytest.raises(DataError, match="predicted with the model unadapted"):
        predict_adapted(adapter, alone)
    plain = predict_adapted(adapter, alone, must_adapt=False)
    with torch.no_grad():
        np.testing.assert_allclose(plain, adapter.model.eval()(alone.images).logits.double().numpy())
    assert "unadapted" in adapter.remarks[-1]
    predict_adapted(adapter, group)
    assert adapter.kept is not None
    from_run = predict_adapted(adapter, alone)
    assert "as the run left it" in adapter.remarks[-1]
    assert not np.allclose(from_run, plain)
    mixed = Images("p" * 12 + "q", "a" * 12 + "b")
    found = predict_adapted(tent(lr=0.05), mixed)
    assert np.isfinite(found).all()


def test_with_never_a_run_is_gone_on_from() -> None:
    data = Images("p" * 12, "a" * 12)
    first = tent(reset="never", lr=0.05)
    predict_adapted(first, data)
    second = tent(reset="never", lr=0.05)
    second.kept = first.kept
    assert not np.allclose(predict_adapted(second, data), predict_adapted(tent(reset="never", lr=0.05), data))
    before = {k: v.clone() for k, v in second.state_dict().items()}
    second.reset()
    assert all(torch.equal(v, before[k]) for k, v in second.state_dict().items())
