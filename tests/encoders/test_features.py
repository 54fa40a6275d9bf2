"""Features computed once: the same as the encoder's, kept, resumed, checked; probes and neighbours on them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import medtl
from medtl.cli import main
from medtl.encoders import features as module
from medtl.encoders.features import (
    FeatureDataset,
    extract_depths,
    extract_features,
    feature_table,
    knn_logits,
)
from medtl.errors import ConfigError, DataError
from medtl.models import Encoder
from medtl.prediction.classify import predict_cases
from tests.helpers.masks import write_masked_site
from tests.helpers.sites import write_site


@pytest.fixture
def cohort(tmp_path: Path) -> medtl.Cohort:
    write_site(tmp_path / "site", 24)
    cases = medtl.collect_cases(source=[tmp_path / "site"], labels=tmp_path / "site" / "labels.csv")
    return medtl.Cohort.prepare(cases, medtl.suggest_preprocess(cases.items(), 32), tmp_path / "cache")


def encoder(seed: int = 0) -> Any:
    return medtl.build_classifier("test_resnet", 2, weights="random", seed=seed).encoder


def data(cohort: medtl.Cohort, augment: str = "standard") -> Any:
    return cohort.dataset("source", "train", with_labels=True, augment=augment)


@torch.no_grad()
def test_features_are_the_encoders(cohort: medtl.Cohort, tmp_path: Path) -> None:
    network, scans = encoder(), data(cohort)
    found = extract_features(network, scans, tmp_path / "f", views=2, batch_size=5)
    assert found.features.shape == (len(scans), 2, network.num_features)
    assert found.labels == scans.labels
    network.eval()
    plain, third = scans.plain()[3], scans
    torch.testing.assert_close(found.features[3, 0], network(plain.image[None])[0])
    third.set_epoch(1)
    torch.testing.assert_close(found.features[3, 1], network(third[3].image[None])[0])
    found.set_epoch(1)
    assert torch.equal(found[3].image, found.features[3, 1])
    assert torch.equal(found.plain()[3].image, found.features[3, 0])
    stage = extract_features(network, scans, tmp_path / "f", depth="stage2")
    torch.testing.assert_close(stage.features[3, 0], network.features_at(plain.image[None])["stage2"][0])
    with pytest.raises(ConfigError, match="no depth 'stage9'"):
        extract_features(network, scans, tmp_path / "f", depth="stage9")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that an encoder is given."""
    sizes: list[int] = []

    def count(name: str) -> None:
        encode = getattr(Encoder, name)

        def counted(self: Encoder, image: torch.Tensor) -> Any:
            sizes.append(len(image))
            return encode(self, image)

        monkeypatch.setattr(Encoder, name, counted)

    count("forward")
    count("features_at")
    return sizes


def test_what_is_kept_is_not_computed_again(
    cohort: medtl.Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoded: list[int],
) -> None:
    monkeypatch.setattr(module, "SHARD", 6)
    scans = data(cohort)
    steps: list[tuple[int, int]] = []
    first = extract_features(encoder(), scans, tmp_path / "f", progress=lambda *step: steps.append(step))
    assert sum(encoded) == len(scans) == 18
    assert steps == [(6, 18), (12, 18), (18, 18)]
    again = extract_features(encoder(), scans, tmp_path / "f")
    assert sum(encoded) == 18
    assert torch.equal(first.features, again.features)
    shards = sorted((tmp_path / "f").glob("*/*"), key=lambda path: path.stat().st_size)
    assert len(shards) == 3
    for place, byte in ((1, -1), (2, 12)):  # the last number of one, the header of another
        broken = bytearray(shards[place].read_bytes())
        broken[byte] ^= 255
        shards[place].write_bytes(broken)
    with caplog.at_level(logging.WARNING, logger="medtl"):
        mended = extract_features(encoder(), scans, tmp_path / "f")
    assert sum(encoded) == 18 + 12
    assert torch.equal(first.features, mended.features)
    assert caplog.text.count("damaged") == 2
    extract_features(encoder(seed=1), scans, tmp_path / "f")
    assert sum(encoded) == 18 + 12 + 18
    extract_features(encoder(), data(cohort, "none"), tmp_path / "f")  # one view: not augmented
    assert sum(encoded) == 18 + 12 + 18


def test_stopped_extraction_gives_the_same_bits(
    cohort: medtl.Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 6)
    whole = extract_features(encoder(), data(cohort), tmp_path / "whole", views=2)

    def stop(done: int, _: int) -> None:
        if done == 24:  # in the second view
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(encoder(), data(cohort), tmp_path / "cut", views=2, progress=stop)
    resumed = extract_features(encoder(), data(cohort), tmp_path / "cut", views=2)
    assert torch.equal(whole.features, resumed.features)


def test_cases_are_shared_between_data_sets(cohort: medtl.Cohort, tmp_path: Path, encoded: list[int]) -> None:
    """Whoever encoded a case, in whatever company, nobody does so again; but a view of another seed is another."""
    chosen, network = cohort.select("source", "train"), encoder()
    some = cohort.dataset("source", "train", with_labels=True, cases=chosen[4:9])
    every = cohort.dataset("source", "train", with_labels=True, cases=chosen[::-1])
    assert some is not None
    assert every is not None
    few = extract_features(network, some, tmp_path / "f")
    assert sum(encoded) == 5
    found = extract_features(network, every, tmp_path / "f")
    assert sum(encoded) == 18
    assert torch.equal(found.features.flip(0)[4:9], few.features)
    with torch.no_grad():
        for place in (0, 8, 17):
            expected = network.eval()(every[place].image[None])[0]
            torch.testing.assert_close(found.features[place, 0], expected)


def test_depths_in_one_pass(cohort: medtl.Cohort, tmp_path: Path, encoded: list[int]) -> None:
    network, scans = encoder(), data(cohort)
    found = extract_depths(network, scans, tmp_path / "f")
    assert sum(n for n in encoded if n > 1) == 18  # single images tell which depths there are
    assert list(found) == [f"stage{k}" for k in range(1, 6)]
    for depth in (*found, "last"):
        kept = extract_features(network, scans, tmp_path / "f", depth=depth)
        assert torch.equal(kept.features, found["stage5" if depth == "last" else depth].features)
    assert sum(n for n in encoded if n > 1) == 18  # single images tell which depths there are
    alone = extract_features(network, scans, tmp_path / "other", depth="stage2")
    torch.testing.assert_close(alone.features, found["stage2"].features)
    torch.testing.assert_close(
        found["stage5"].features, extract_features(network, scans, tmp_path / "other").features
    )
    assert network.training  # as it was


def test_views_are_shared_between_data_sets(cohort: medtl.Cohort, tmp_path: Path, encoded: list[int]) -> None:
    def views(num: int, seed: int) -> int:
        scans = cohort.dataset("source", "train", with_labels=True, augment="standard", seed=seed)
        before = sum(encoded)
        extract_features(encoder(), scans, tmp_path / "f", views=num)
        return sum(encoded) - before

    assert views(2, seed=0) == 2 * 18
    assert views(3, seed=0) == 18  # one more
    assert views(3, seed=1) == 2 * 18  # the one without augmentation is there
    with pytest.raises(ConfigError, match="3 views with augmentation 'none'"):
        extract_features(encoder(), data(cohort, "none"), tmp_path / "f", views=3)


def test_a_folder_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_site(tmp_path / "site", 6)
    monkeypatch.chdir(tmp_path)
    words = [
        "run",
        "extract_features",
        "--target",
        "site",
        "--smoke",
        "--encoder",
        "test_resnet",
        "--out",
        "r",
    ]
    assert main(words) == 0
    about = pd.read_csv("r/features.csv")
    assert len(about) == len(np.load("r/features.npy")) == 12
    assert about.label.isna().all()
    assert main([*words[:2], "--source", "site", "--out", "s"]) == 2


def test_a_folder_with_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are those of the scans alone; the table has the sizes of the structures, and no label."""
    write_masked_site(tmp_path / "site", 8)
    write_masked_site(tmp_path / "other", 3, offset=50)
    monkeypatch.chdir(tmp_path)
    words = ["run", "extract_features", "--smoke", "--encoder", "test_resnet", "--target", "other"]
    assert main([*words, "--source", "site", "--masks", "site/masks", "--out", "r"]) == 0
    about = pd.read_csv("r/features.csv")
    assert len(about) == len(np.load("r/features.npy")) == 2 * (8 + 3)
    assert about.label.isna().all()
    source = about[about.domain == "source"]
    assert about[about.domain == "target"].pixels_core.isna().all()
    for name, value in (("core", 255), ("rim", 128)):
        for case, size in zip(source.case, source[f"pixels_{name}"], strict=True):
            mask = np.asarray(Image.open(f"site/masks/{case}.png"))
            assert size == (mask == value).sum()


def test_probe_is_the_same_on_features_and_on_images(cohort: medtl.Cohort, tmp_path: Path) -> None:
    scans = data(cohort, "none")
    config = medtl.FitConfig(epochs=2, batch_size=8, accelerator="cpu", tensorboard=False, lr=1e-3)
    logits = []
    for place in ("features", "images"):
        model = medtl.build_classifier("test_resnet", 2, weights="random", bottleneck=16, seed=0)
        strategy = medtl.build_adapter("finetune", model, strategy="probe")
        given = scans if place == "images" else extract_features(model.encoder, scans, tmp_path / "f")
        medtl.fit(strategy, given, folder=tmp_path / place, config=config)
        logits.append(predict_cases(model, given))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


def test_table_and_neighbours(cohort: medtl.Cohort, tmp_path: Path) -> None:
    found = extract_features(encoder(), data(cohort), tmp_path / "f", views=2)
    table = feature_table(found)
    assert len(table) == 2 * len(found)
    assert list(table.columns[:8]) == ["case", "patient", "site", "domain", "split", "label", "view", "f0000"]
    np.testing.assert_array_equal(table.loc[1, "f0000"], found.features[0, 1, 0].numpy())
    logits = knn_logits(found.plain(), found.plain(), k=1)
    assert (logits.argmax(1) == np.array(found.labels)).all()  # each is its own nearest neighbour
    np.testing.assert_allclose(np.exp(logits).sum(1), 1)
    assert np.exp(logits).max() == pytest.approx(0.75, abs=1e-3)  # (1 + 1/2) / (1 + 1)
    with pytest.raises(DataError, match="too few for k = 999"):
        knn_logits(found, found, k=999)


def test_volumes_keep_their_slices() -> None:
    model = medtl.build_classifier("test_resnet", 2, weights="random", seed=0).eval()
    volumes = torch.rand(2, 3, 4, 32, 32)
    slices = model.encode(volumes)
    assert slices.shape == (2, 4, model.encoder.num_features)
    torch.testing.assert_close(model(slices).logits, model(volumes).logits)
    with pytest.raises(DataError, match="another encoder"):
        model(torch.rand(2, 7))
    with pytest.raises(DataError, match="N = 1"):
        FeatureDataset(torch.rand(2, 1, 8), [None], classes=("a", "b"))  # type: ignore[list-item]
