"""Parts of models, by name or by layer, and normalisation by the batch that leaves no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from medtl.adapters.contract.adversarial import as_cases, domain_loss, reverse_gradient
from medtl.adapters.contract.parts import classes_of, encoder_of, head_of, normalised_by_batch, per_class
from medtl.errors import ConfigError
from medtl.models import build_classifier, with_features
from medtl.models.segmenter import build_segmenter
from tests.adapters.toys import network


def test_rows_are_voxels() -> None:
    values = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    rows = per_class(values)
    assert rows.shape == (40, 3)
    assert rows[5 * 1 + 2].tolist() == values[0, :, 1, 2].tolist()
    assert torch.equal(per_class(values[:, :, 0, 0]), values[:, :, 0, 0])


def test_locations_of_a_map_are_drawn_without_replacement() -> None:
    features = torch.arange(6.0).view(3, 2)
    assert as_cases(features, most=1) is features
    maps = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(as_cases(maps, most=40), per_class(maps))
    torch.manual_seed(0)
    drawn = as_cases(maps, most=7)
    rows = {tuple(row.tolist()) for row in per_class(maps)}
    assert len({tuple(row.tolist()) for row in drawn} & rows) == 7


def test_each_domain_has_half_of_the_loss() -> None:
    source, target = torch.tensor([0.0, 2.0]), torch.tensor([-1.0])
    loss, accuracy = domain_loss(source, target)
    expected = 0.5 * ((math.log(2) + math.log1p(math.exp(-2))) / 2 + math.log1p(math.exp(-1)))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(accuracy) == 0.75
    thrice, _ = domain_loss(source, target.repeat(3))
    torch.testing.assert_close(thrice, loss)


def test_the_gradient_is_reversed_and_scaled() -> None:
    value = torch.tensor([1.0, -2.0], requires_grad=True)
    passed = reverse_gradient(value, 0.25)
    assert torch.equal(passed, value)
    passed.backward(torch.tensor([4.0, 8.0]))
    assert torch.equal(value.grad, torch.tensor([-1.0, -2.0]))


def test_parts_of_medtls_own_networks() -> None:
    classifier = build_classifier("resnet18", 3, weights="random")
    assert (classes_of(classifier, "X"), head_of(classifier, "X")) == (3, classifier.head)
    assert encoder_of(classifier) is classifier.encoder
    segmenter = build_segmenter("resnet18", 4, network="unet", weights="random")
    assert (classes_of(segmenter, "X"), head_of(segmenter, "X")) == (4, segmenter.head)
    encoder = encoder_of(segmenter)
    assert encoder is not None
    inside, head = ({id(p) for p in m.parameters()} for m in (encoder, segmenter.head))
    assert inside
    assert head
    assert not inside & head


def test_parts_of_a_network_of_the_users_own() -> None:
    model = network(num_classes=5)
    assert classes_of(model, "X") == 5
    assert isinstance(head_of(model, "X"), nn.Linear)
    assert encoder_of(model) is None
    with pytest.raises(ConfigError, match="head"):
        head_of(nn.Sequential(nn.Linear(2, 2)), "X")
    with pytest.raises(ConfigError, match="num_classes"):
        classes_of(nn.Sequential(nn.ReLU()), "X")
    named = with_features(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)), layer="0")
    with pytest.raises(ConfigError):
        head_of(named, "X")


def test_normalising_by_the_batch_leaves_no_trace() -> None:
    model = network().train()
    model.module[4].eval()
    before, image = copy.deepcopy(model.state_dict()), 3 * torch.rand(6, 1, 8, 8)
    with normalised_by_batch(model):
        outputs = model(image).logits
        assert model.module[1].training
        assert not model.module[0].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.module[1].training, model.module[4].training) == (True, False)
    assert model.module[1].momentum == 0.1
    with normalised_by_batch(model, momentum=1.0):
        model(image)
    torch.testing.assert_close(model.module[1].running_mean, model.module[0](image).mean((0, 2, 3)))
    assert not torch.allclose(model.eval()(image[:1]).logits, outputs[:1] + 1)
