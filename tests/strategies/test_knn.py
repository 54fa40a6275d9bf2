"""Nearest neighbours as a strategy: scikit-learn's votes, a model like any other on disk, what does not go with it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier

import medtl
from medtl.adapters import hyper_parameters
from medtl.encoders.features import extract_features, knn_logits
from medtl.errors import ConfigError, DataError
from medtl.models.neighbours import NeighbourHead
from medtl.prediction.classify import predict_cases
from medtl.prediction.trained import load_trained, model_header
from medtl.strategies import strategy_class
from tests.helpers.sites import write_site
from tests.strategies.tuning import tuned

RNG = np.random.default_rng(0)


def test_votes_are_those_of_scikit_learn() -> None:
    x, y = RNG.normal(size=(40, 8)), np.arange(40) % 3
    asked = RNG.normal(size=(200, 8))
    head = NeighbourHead(8, 3, k=7)
    head.remember(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    probs = head(torch.tensor(asked, dtype=torch.float32)).exp().numpy()
    theirs = KNeighborsClassifier(7, metric="cosine").fit(x, y).predict_proba(asked)
    np.testing.assert_allclose(probs, (7 * theirs + 1 / 3) / 8, rtol=2e-3)


def test_closed_form() -> None:
    """Two of three neighbours say class 1: (2 + 1/2) / (3 + 1). The length of a vector says nothing."""
    head = NeighbourHead(2, 2, k=3)
    head.remember(
        torch.tensor([[9.0, 0], [1, 0.1], [1, 0.2], [-1, 0], [-2, 0]]), torch.tensor([0, 1, 1, 0, 0])
    )
    probs = head(torch.tensor([[0.5, 0.0]])).exp()
    torch.testing.assert_close(probs, torch.tensor([[0.375, 0.625]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(probs.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("nearer", [0, 1])
def test_of_equal_votes_the_nearer_decide(nearer: int) -> None:
    head = NeighbourHead(2, 2, k=2)
    head.remember(torch.tensor([[1.0, 0.1], [1.0, 0.3]]), torch.tensor([nearer, 1 - nearer]))
    logits = head(torch.tensor([[1.0, 0.0]]))
    assert logits.argmax() == nearer
    torch.testing.assert_close(logits.exp(), torch.full((1, 2), 0.5), atol=1e-3, rtol=0)


def test_what_cannot_be_remembered_or_asked() -> None:
    head = NeighbourHead(4, 2, k=5)
    with pytest.raises(DataError, match="before `remember`"):
        head(torch.rand(1, 4))
    with pytest.raises(DataError, match="too few for k = 5"):
        head.remember(torch.rand(4, 4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="class indices from 0 to 1"):
        head.remember(torch.rand(5, 4), torch.full((5,), 2))
    with pytest.raises(ConfigError, match="k = 0"):
        NeighbourHead(4, 2, k=0)


@pytest.fixture
def cohort(tmp_path: Path) -> medtl.Cohort:
    write_site(tmp_path / "site", 24)
    cases = medtl.collect_cases(source=[tmp_path / "site"], labels=tmp_path / "site" / "labels.csv")
    return medtl.Cohort.prepare(cases, medtl.suggest_preprocess(cases.items(), 32), tmp_path / "cache")


def test_fit_remembers_and_the_model_comes_back(cohort: medtl.Cohort, tmp_path: Path) -> None:
    scans = cohort.dataset("source", "train", with_labels=True, augment="standard")
    held_out = cohort.dataset("source", "validation", with_labels=True)
    assert scans is not None
    assert held_out is not None
    config = medtl.FitConfig(accelerator="cpu", tensorboard=False)
    found = {}
    for place in ("features", "images"):
        model = medtl.build_classifier("test_resnet", 2, weights="random", seed=0)
        strategy = tuned("knn:3", model)
        before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        kept = extract_features(model.encoder, scans, tmp_path / "f")
        given = kept if place == "features" else scans
        header = model_header(strategy, scans.classes, cohort.cache.preprocess)
        result = medtl.fit(strategy, given, folder=tmp_path / place, config=config, header=header)
        assert (result.epochs, result.losses) == (0, {})
        assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())
        logits = predict_cases(model, held_out)
        again = load_trained(result.path)
        np.testing.assert_array_equal(predict_cases(again.model, held_out), logits)
        medtl.fit(strategy, given, folder=tmp_path / place, config=config, header=header)  # is there already
        found[place] = logits
        away = extract_features(model.encoder, held_out, tmp_path / "f")
        np.testing.assert_allclose(logits, knn_logits(kept.plain(), away, k=3), atol=1e-6)
    np.testing.assert_allclose(found["features"], found["images"], atol=1e-6)
    state = load_file(tmp_path / "images" / "model.safetensors")
    assert state["head.memory"].shape == (len(scans), model.encoder.num_features)


def test_volumes_are_compared_by_the_mean_of_their_slices() -> None:
    model = medtl.build_classifier("test_resnet", 2, weights="random", seed=0)
    strategy = tuned("knn", model, k=1)
    volumes, label = torch.rand(4, 3, 5, 32, 32), torch.tensor([0, 1, 0, 1])
    strategy.begin({"source": [medtl.Batch(image=volumes, label=label)]})
    assert torch.equal(model(volumes).logits.argmax(1), label)
    other = copy.deepcopy(strategy)
    assert torch.equal(other.model(volumes).logits, model(volumes).logits)
    assert other.strategy.plan(1e-3) == strategy.strategy.plan(1e-3)
    mean = model.encode(volumes).mean(1)
    torch.testing.assert_close(model.head.memory, mean / mean.norm(dim=1, keepdim=True))


def test_the_plan_says_that_nothing_is_trained() -> None:
    model = medtl.build_classifier("test_resnet", 2, weights="random")
    plan = tuned("knn:5", model).strategy.plan(1e-3)
    assert plan[-1]["part"] == "the 5 nearest cases"
    assert {row["trained"] for row in plan} == {"no", "remembered"}
    assert sum(row["parameters"] for row in plan) == sum(p.numel() for p in model.parameters())
    # What would do nothing cannot be asked for.
    assert list(hyper_parameters(strategy_class("knn"))) == ["k"]


def test_what_does_not_go_with_it() -> None:
    dense = medtl.build_classifier("test_resnet", 2, weights="random", bottleneck=8)
    with pytest.raises(ConfigError, match="Leave --head out"):
        tuned("knn", dense)
    masks = medtl.build_segmenter("resnet10t", 2, weights="random")
    with pytest.raises(ConfigError, match="one label"):
        tuned("knn", masks)
