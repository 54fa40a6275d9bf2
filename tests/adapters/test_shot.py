"""SHOT: its losses in closed form, centroids that overrule the network, a head that stays."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from medtl.adapters import Batch, build_adapter
from medtl.adapters.contract.parts import pseudo_labels
from medtl.adapters.shot import SHOT
from medtl.errors import ConfigError, DataError
from medtl.models import Output
from tests.adapters.toys import domains, network, segmenter
from tests.adapters.training import begin, source_only, train


class Fixed(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.head = nn.Identity()
        self.num_classes = logits.shape[1]
        self.features = torch.eye(len(logits), 3)

    def forward(self, image: Tensor) -> Output:
        return Output(self.logits[: len(image)], self.features[: len(image)])


def fixed(probabilities: list[list[float]], **options: object) -> tuple[SHOT, Batch]:
    p = torch.tensor(probabilities)
    adapter = SHOT(Fixed(p.log()), **options)
    return adapter, Batch(image=torch.rand(len(p), 1, 4, 4), index=torch.arange(len(p)))


def test_information_maximisation_has_the_papers_values() -> None:
    adapter, target = fixed([[0.9, 0.1], [0.2, 0.8]], pseudo_weight=0.0)
    losses = begin(adapter, target)(None, target, progress=0.0)
    each = [-sum(q * math.log(q) for q in row) for row in ([0.9, 0.1], [0.2, 0.8])]
    mean = -(0.55 * math.log(0.55) + 0.45 * math.log(0.45))
    assert float(losses["entropy"]) == pytest.approx(sum(each) / 2, rel=1e-5)
    # KL to the uniform shares: minus the entropy of the batch's mean, and a constant.
    assert float(losses["diversity_loss"]) == pytest.approx(math.log(2) - mean, rel=1e-4)
    assert float(losses["loss"].detach()) == pytest.approx(sum(each) / 2 + math.log(2) - mean, rel=1e-5)


def test_diversity_is_of_the_batch_not_of_the_cases() -> None:
    for rows, low in (([[0.99, 0.01], [0.01, 0.99]], True), ([[0.99, 0.01], [0.99, 0.01]], False)):
        adapter, target = fixed(rows, pseudo_weight=0.0)
        diversity = float(begin(adapter, target)(None, target, progress=0.0)["diversity_loss"])
        assert (diversity < 0.01) == low


def test_predicted_prior_is_the_start_and_stays() -> None:
    adapter, target = fixed([[0.9, 0.1], [0.7, 0.3]], prior="predicted", pseudo_weight=0.0)
    begin(adapter, target)
    torch.testing.assert_close(adapter.shares, torch.tensor([0.8, 0.2]))
    assert float(adapter(None, target, progress=0.0)["diversity_loss"]) == pytest.approx(0.0, abs=1e-6)
    adapter.model.logits.data = torch.tensor([[0.5, 0.5], [0.3, 0.7]]).log()
    begin(adapter, target)
    torch.testing.assert_close(adapter.shares, torch.tensor([0.8, 0.2]))
    expected = 0.4 * math.log(0.4 / 0.8) + 0.6 * math.log(0.6 / 0.2)
    assert float(adapter(None, target, progress=0.0)["diversity_loss"]) == pytest.approx(expected, rel=1e-4)
    other = SHOT(Fixed(torch.zeros(2, 2)), prior="predicted")
    other.load_state_dict(copy.deepcopy(adapter.state_dict()))
    torch.testing.assert_close(other.shares, torch.tensor([0.8, 0.2]))
    assert bool(other.started)


def test_voxels_keep_to_predicted_shares_and_cases_to_even_ones() -> None:
    """Uniform shares would ask half an image to be foreground."""
    logits = torch.zeros(2, 2, 10, 10)
    logits[:, 0] = 9.0
    logits[:, :, :3, :2] = torch.tensor([-4.0, 4.0]).view(2, 1, 1)
    adapter = SHOT(Fixed(logits))
    target = Batch(image=torch.rand(2, 1, 10, 10), index=torch.arange(2))
    losses = begin(adapter, target)(None, target, progress=0.0)
    assert float(adapter.shares[1]) == pytest.approx(0.06, abs=1e-3)
    assert float(losses["diversity_loss"]) == pytest.approx(0.0, abs=1e-6)
    assert "pseudo_loss" not in losses
    uniform = SHOT(Fixed(logits), prior="uniform")
    assert float(begin(uniform, target)(None, target, progress=0.0)["diversity_loss"]) > 0.4
    cases, batch = fixed([[0.9, 0.1], [0.7, 0.3]])
    torch.testing.assert_close(begin(cases, batch).shares, torch.tensor([0.5, 0.5]))


class TestPseudoLabels:
    def test_centroids_overrule_the_network(self) -> None:
        features = torch.tensor([[5.0, 0.0], [4.0, 0.5], [0.0, 5.0], [0.5, 4.0], [4.5, 0.3]])
        p = torch.tensor(
            [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.4, 0.6]]
        )  # the last one is wrong
        assert pseudo_labels(features, p).tolist() == [0, 0, 1, 1, 0]

    def test_equals_the_algorithm_step_by_step(self) -> None:
        generator = torch.Generator().manual_seed(0)
        features, p = (
            torch.rand(40, 5, generator=generator),
            torch.rand(40, 3, generator=generator).softmax(1),
        )
        x = torch.cat([features, torch.ones(40, 1)], dim=1)
        x = x / x.norm(dim=1, keepdim=True)
        weights = p
        for _ in range(2):
            centroids = torch.stack(
                [(weights[:, k, None] * x).sum(0) / weights[:, k].sum() for k in range(3)]
            )
            labels = nn.functional.cosine_similarity(x[:, None], centroids[None], dim=2).argmax(1)
            weights = torch.eye(3)[labels]
        assert torch.equal(pseudo_labels(features, p), labels)

    def test_the_second_round_counts(self) -> None:
        generator = torch.Generator().manual_seed(3)
        features, p = torch.randn(60, 4, generator=generator), torch.rand(60, 3, generator=generator)
        p = p / p.sum(1, keepdim=True)
        x = nn.functional.normalize(nn.functional.pad(features, (0, 1), value=1.0), dim=1)
        once = (x @ nn.functional.normalize(p.T @ x, dim=1).T).argmax(1)
        assert not torch.equal(pseudo_labels(features, p), once)

    def test_rare_classes_are_no_candidates(self) -> None:
        features = torch.eye(6)[:, :3] + 0.1
        p = torch.tensor([[0.9, 0.05, 0.05]] * 3 + [[0.05, 0.9, 0.05]] * 2 + [[0.05, 0.05, 0.9]])
        assert set(pseudo_labels(features, p, threshold=1).tolist()) <= {0, 1}
        assert pseudo_labels(features, p, threshold=10).tolist() == p.argmax(1).tolist()

    def test_go_by_place_not_by_order(self) -> None:
        adapter = SHOT(source_only("classification"))
        _, target, _ = domains(12, 0)
        begin(adapter, target)
        order = torch.randperm(12)
        shuffled = Batch(image=target.image[order], index=target.index[order])
        adapter.eval()
        first = adapter(None, target, progress=0.0)["pseudo_loss"]
        torch.testing.assert_close(adapter(None, shuffled, progress=0.0)["pseudo_loss"], first)
        wrong = Batch(image=target.image[order], index=target.index)
        assert not torch.allclose(adapter(None, wrong, progress=0.0)["pseudo_loss"], first, atol=1e-4)

    def test_are_refreshed_in_eval_mode_each_epoch(self) -> None:
        adapter = SHOT(source_only("classification")).train()
        targets = [domains(8, s, start=8 * s)[1] for s in range(3)]
        begin(adapter, *targets)
        whole = Batch(image=torch.cat([t.image for t in targets]), index=torch.arange(24))
        before = copy.deepcopy(adapter.state_dict())
        assert adapter.model.training
        begin(adapter, *targets)
        assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items())
        with torch.no_grad():
            adapter.model.head.weight.neg_()
            adapter.model.head.bias.neg_()
        stale = adapter(None, whole, progress=0.0)["pseudo_loss"]
        begin(adapter, *targets)
        assert adapter(None, whole, progress=0.0)["pseudo_loss"] < 0.5 * stale


def test_head_is_frozen_and_in_eval_mode() -> None:
    for model in (network(), segmenter()):
        adapter = SHOT(model).train()
        head = model.head
        assert not head.training
        assert adapter.model.training
        assert not any(p.requires_grad for p in head.parameters())
        before = copy.deepcopy(head.state_dict())
        train(
            adapter,
            3,
            8,
            task="segmentation" if model.__class__.__name__ == "Segmenter" else "classification",
        )
        assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
        assert not head.training


def test_the_encoder_learns_slower() -> None:
    model = segmenter()
    rates = {id(p): g["lr"] for g in SHOT(model, encoder_lr=0.1).param_groups(1.0) for p in g["params"]}
    assert {rates[id(p)] for p in model.encoder.parameters()} == {0.1}
    assert {rates[id(p)] for part in (model.down, model.decoder) for p in part.parameters()} == {1.0}
    assert not {id(p) for p in model.head.parameters()} & set(rates)
    assert {g["lr"] for g in SHOT(network()).param_groups(1.0)} == {0.1}


def test_statistics_start_as_the_targets() -> None:
    adapter = SHOT(network())
    _, target, _ = domains(32, 0)
    begin(adapter, target)
    mean = adapter.model.module[0](target.image).mean(dim=(0, 2, 3))
    torch.testing.assert_close(adapter.model.module[1].running_mean, mean)
    frozen = SHOT(network(), norm="frozen")
    before = frozen.model.module[1].running_mean.clone()
    assert torch.equal(begin(frozen, target).model.module[1].running_mean, before)


def test_needs_no_source_and_says_what_it_needs() -> None:
    assert "source" not in SHOT.needs
    _, target, _ = domains(8, 0)
    adapter = build_adapter("shot", network())
    with pytest.raises(ConfigError, match="on_epoch_start"):
        adapter(None, target, progress=0.0)
    begin(adapter, target)
    with pytest.raises(DataError, match="index"):
        adapter(None, Batch(image=target.image), progress=0.0)
    with pytest.raises(DataError, match="index"):
        adapter(None, Batch(image=target.image, index=target.index + 4), progress=0.0)
    with pytest.raises(DataError, match="there are none"):
        begin(build_adapter("shot", network()))


@pytest.mark.parametrize("options", [{"prior": "even"}, {"pseudo_weight": -1.0}])
def test_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="SHOT: prior"):
        build_adapter("shot", network(), **options)


def test_refuses_a_model_without_a_known_head() -> None:
    model = segmenter()
    del model.head
    with pytest.raises(ConfigError, match="head"):
        SHOT(model)
