from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from medtl.data.tensors.batch import Batch, collate
from medtl.errors import DataError
from medtl.training.loaders import AheadLoader


class Numbers(Dataset[Batch]):
    """Counts what was asked for; number 5 cannot be read."""

    def __init__(self, num: int) -> None:
        self.num, self.asked = num, []

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Batch:
        self.asked.append(index)
        if index == 5:
            raise DataError("Number 5 is damaged.")
        return Batch(image=torch.full((1, 2, 2), float(index)))


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch computes on one of two cores."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)


@pytest.mark.usefixtures("one_core")
def test_one_batch_is_made_ahead_and_nothing_else_changes() -> None:
    plain = DataLoader(Numbers(5), 2, collate_fn=collate)
    data = Numbers(5)
    ahead = AheadLoader(data, 2, collate_fn=collate)
    for _ in range(2):  # it can be gone through again
        found = [batch.image for batch in ahead]
        assert all(torch.equal(a, b.image) for a, b in zip(found, plain, strict=True))
    data.asked.clear()
    batches = iter(ahead)
    next(batches)
    batches.close()  # waits for the batch that is being made
    assert data.asked == [0, 1, 2, 3]


def test_no_thread_takes_turns_with_torch_on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: torch.get_num_threads())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    data = Numbers(5)
    next(iter(AheadLoader(data, 2, collate_fn=collate)))
    assert data.asked == [0, 1]


@pytest.mark.usefixtures("one_core")
def test_an_error_of_the_data_arrives_where_the_batch_is_asked_for() -> None:
    batches = iter(AheadLoader(Numbers(6), 2, collate_fn=collate))
    assert float(next(batches).image[1, 0, 0, 0]) == 1
    assert float(next(batches).image[1, 0, 0, 0]) == 3
    with pytest.raises(DataError, match="Number 5"):
        next(batches)
