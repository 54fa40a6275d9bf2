"""The contract of every strategy, by discovery, with BatchNorm and with LayerNorm; penalties in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from medtl.adapters import Adapter, hyper_parameters
from medtl.data.tensors.batch import Batch
from medtl.errors import ConfigError
from medtl.models import Classifier, build_classifier
from medtl.strategies import available, parse_strategy_hparams, strategy_class
from medtl.training.fit import FitConfig, fit
from tests.strategies.tuning import output, tuned

ENCODERS = ("test_resnet", "test_vit", "test_convnext")
TRAINED = [name for name in available() if strategy_class(name).trains]
"""The other is in test_knn.py."""
OF_STAGES = {"full", "gradual", "last", "layer_decay", "lora", "norms"}
"""Strategies for which an encoder's layers or stages matter most; the others try the other encoders in slow tests."""
PAIRS = [
    pytest.param(s, e, marks=() if e == ENCODERS[0] or s in OF_STAGES else pytest.mark.slow)
    for s in TRAINED
    for e in ENCODERS
    if (s, e[5:]) not in {("stochnorm", "vit"), ("stochnorm", "convnext")}
]


def classifier(encoder: str = "test_resnet", classes: int = 3, **options: object) -> Classifier:
    """Residual branches begin at zero in random networks, which pretrained ones do not."""
    model = build_classifier(encoder, classes, weights="random", seed=0, **options)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    return model


def batch(classes: int = 3, num: int = 6, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(num) % classes
    image = torch.rand(num, 3, size, size, generator=generator) * 0.5
    return Batch(image=image + 0.5 * (label / classes).view(-1, 1, 1, 1), label=label)


def steps(strategy: Adapter, num: int = 4, **options: int) -> None:
    strategy.train()
    optimizer = torch.optim.AdamW(strategy.param_groups(1e-2), lr=1e-2, weight_decay=1e-2)
    for step in range(num):
        torch.manual_seed(step)
        loss = strategy(batch(**options), None, progress=step / num)["loss"]
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        strategy.end_step()


class Cases:
    """Images in memory, as `fit` takes them."""

    def __init__(self, num: int = 24) -> None:
        self.batch = batch(num=num)
        self.labels = tuple(self.batch.label.tolist())

    def plain(self) -> Cases:
        return self

    def set_epoch(self, epoch: int) -> None:
        """Nothing is augmented."""

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Batch:
        return Batch(image=self.batch.image[int(index)], label=self.batch.label[int(index)])


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
class TestEveryStrategy:
    def test_what_the_plan_says_happens(self, name: str, encoder: str) -> None:
        strategy = tuned(name, classifier(encoder))
        plan = strategy.strategy.plan(1e-2)
        own = [row for row in plan if row["part"] != "low-rank changes"]
        assert sum(row["parameters"] for row in own) == sum(p.numel() for p in strategy.model.parameters())
        before = {k: v.clone() for k, v in strategy.model.state_dict().items()}
        learning = {n for n, p in strategy.model.named_parameters() if p.requires_grad}
        count = sum(p.numel() for n, p in strategy.model.named_parameters() if n in learning)
        assert count == sum(row["parameters"] for row in own if row["trained"] == "yes")
        steps(strategy, 8)
        used = learning - {n for n in learning if n.startswith("pool.")}  # images have no slices to pool
        for key, value in strategy.model.state_dict().items():
            if key in used:
                assert not torch.equal(value, before[key]), f"{key} should have learnt"
            elif key in dict(strategy.model.named_parameters()) and not key.startswith("pool."):
                assert torch.equal(value, before[key]), f"{key} is frozen"

    def test_frozen_statistics_stand_still(self, name: str, encoder: str) -> None:
        strategy = tuned(name, classifier(encoder))
        before = {k: v.clone() for k, v in strategy.model.named_buffers()}
        modes = {row["part"]: row["BatchNorm"] for row in strategy.strategy.plan(1e-2)}
        steps(strategy)
        changed = {k for k, v in strategy.model.named_buffers() if not torch.equal(v, before[k])}
        if all(mode in ("eval", "-") for mode in modes.values()):
            assert changed == set()
        elif name == "full" and encoder == "test_resnet":
            assert changed

    def test_deterministic_and_binary(self, name: str, encoder: str) -> None:
        ends = []
        for _ in range(2):
            strategy = tuned(name, classifier(encoder, 2), seed=3)
            steps(strategy, 2, classes=2)
            ends.append(strategy.state_dict())
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_resumed_weights_are_bit_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr("medtl.training.keeper.CHECKPOINT_SECONDS", 0.0)
    config = FitConfig(
        epochs=3, batch_size=8, steps_per_epoch=2, accelerator="cpu", tensorboard=False, lr=1e-3
    )
    made = []
    for place in ("whole", "cut"):
        strategy = tuned(name, classifier(), seed=1, **({"ema": 0.9} if name == "full" else {}))
        if place == "cut":
            calls, step_end = 0, type(strategy).on_step_end

            def stop(self: Adapter, step_end: Any = step_end) -> None:
                nonlocal calls
                calls += 1
                if calls == 5:
                    raise KeyError("stopped")
                step_end(self)

            with monkeypatch.context() as patch:
                patch.setattr(type(strategy), "on_step_end", stop)
                with pytest.raises(KeyError):
                    fit(strategy, Cases(), folder=tmp_path / place, config=config)
            strategy = tuned(name, classifier(), seed=1, **({"ema": 0.9} if name == "full" else {}))
        fit(strategy, Cases(), folder=tmp_path / place, config=config, validation=Cases(9))
        made.append((tmp_path / place / "model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_last_opens_so_many_stages() -> None:
    rows = tuned("last:2", classifier()).strategy.plan(1e-3)
    assert [r["part"] for r in rows if r["trained"] == "yes"] == [
        "encoder stage 3",
        "encoder stage 4",
        "pool",
        "head",
    ]
    assert {r["BatchNorm"] for r in rows if r["trained"] == "no"} == {"eval"}
    with pytest.raises(ConfigError, match="expected 1 to 5"):
        tuned("last:9", classifier())
    with pytest.raises(ConfigError, match="takes no argument"):
        tuned("full:2", classifier())
    with pytest.raises(ConfigError, match="There is no strategy 'prob'"):
        tuned("prob", classifier())


def test_gradual_opens_from_the_last_stage() -> None:
    strategy = tuned("gradual", classifier(), until=0.5)
    strategy.train()
    num_open = []
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6):
        strategy(batch(), None, progress=progress)
        num_open.append(
            sum(
                any(p.requires_grad for p in part.parameters.values())
                for part in strategy.strategy.pretrained
            )
        )
    assert num_open == [0, 1, 2, 3, 4, 5]
    strategy(batch(), None, progress=0.1)
    still = [
        part.name
        for part in strategy.strategy.pretrained
        if any(p.requires_grad for p in part.parameters.values())
    ]
    assert still == ["encoder stage 4"]


def test_layer_decay_rates() -> None:
    rates = {
        r["part"]: float(r["learning rate"])
        for r in tuned("layer_decay", classifier(), decay=0.5).strategy.plan(1.0)
    }
    assert rates["head"] == 1.0
    assert [rates[f"encoder stage {s}"] for s in (4, 3, 2, 1)] == pytest.approx(
        [0.5, 0.25, 0.125, 0.0625], rel=0.05
    )
    assert rates["encoder stem"] == pytest.approx(0.03125, rel=0.05)


def test_lp_ft_begins_with_the_probe() -> None:
    for classes in (2, 3):
        strategy = tuned("lp_ft", classifier(classes=classes), penalty=0.7)
        data = batch(classes, num=30)
        strategy.begin({"source": [data]})
        strategy.eval()
        found = strategy.model(data.image)
        x = found.features.detach().double().numpy()
        x = (x - x.mean(0)) / np.sqrt(x.var(0).mean())
        probe = LogisticRegression(C=0.7, max_iter=2000).fit(x, data.label.numpy())
        given = found.logits.softmax(1).detach().numpy()
        torch.testing.assert_close(
            strategy.train().model(data.image).logits, found.logits
        )  # nothing moves at once
        np.testing.assert_allclose(given, probe.predict_proba(x), atol=1e-3)


def test_l2_sp_in_closed_form() -> None:
    strategy = tuned("l2_sp", classifier(), alpha=0.2, beta=0.3)
    losses = strategy(batch(), None, progress=0.0)
    new = [p for part in strategy.strategy.parts if not part.pretrained for p in part.parameters.values()]
    assert losses["l2_sp"] == 0
    assert losses["l2_head"].item() == pytest.approx(
        0.15 * sum(p.square().sum().item() for p in new), rel=1e-5
    )
    with torch.no_grad():
        first = next(strategy.model.encoder.parameters())
        first += 0.01
    moved = strategy(batch(), None, progress=0.0)["l2_sp"].item()
    assert moved == pytest.approx(0.1 * 1e-4 * first.numel(), rel=1e-3)


def test_bss_is_the_smallest_singular_value() -> None:
    strategy = tuned("bss", classifier(), eta=0.5, k=2)
    losses = strategy.eval()(batch(), None, progress=0.0)
    values = np.linalg.svd(strategy.model(batch().image).features.detach().numpy(), compute_uv=False)
    assert losses["bss"].item() == pytest.approx(0.5 * (values[-2:] ** 2).sum(), rel=1e-3)


def test_delta_is_zero_at_first_and_measures_the_move() -> None:
    strategy = tuned("delta", classifier("test_convnext"), weight=3.0).eval()
    encoder = strategy.model.encoder
    network, image = encoder.network, (batch().image - encoder.mean) / encoder.std
    assert strategy(batch(), None, progress=0.0)["delta"].item() == 0
    before = network.forward_intermediates(image, intermediates_only=True)
    with torch.no_grad():
        for parameter in strategy.model.encoder.parameters():
            parameter.mul_(1.1)
    after = network.forward_intermediates(image, intermediates_only=True)
    moved = [(f - f0).square().sum() / f0.square().sum() for f, f0 in zip(after, before, strict=True)]
    expected = 1.5 * torch.stack(moved).sum().item()
    assert strategy(batch(), None, progress=0.0)["delta"].item() == pytest.approx(expected, rel=1e-5)


def test_lora_begins_as_the_pretrained_and_ends_as_a_plain_network() -> None:
    model = classifier("test_vit")
    plain = model(batch().image).logits
    strategy = tuned("lora", model, rank=2)
    torch.testing.assert_close(output(strategy, batch().image).logits, plain)
    names = set(model.state_dict())
    steps(strategy)
    strategy.eval()
    learnt = output(strategy, batch().image).logits
    assert not torch.allclose(learnt, plain)
    with strategy.on_source():
        torch.testing.assert_close(strategy.model(batch().image).logits, learnt)
    strategy.finish({})
    torch.testing.assert_close(model(batch().image).logits, learnt)
    assert set(model.state_dict()) == names
    with strategy.on_source():  # not added a second time
        torch.testing.assert_close(model(batch().image).logits, learnt)


def test_stochnorm_mixes_in_training_alone() -> None:
    model, image = classifier(), batch().image
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
    predicted = model.eval()(image).logits
    moving = tuned("stochnorm", model, p=1.0).train()
    torch.testing.assert_close(
        output(moving, image).logits, predicted
    )  # all channels by the moving statistics
    strategy = tuned("stochnorm", classifier(), p=0.5).train()
    torch.manual_seed(0)
    first = output(strategy, image).logits
    torch.manual_seed(1)
    assert not torch.allclose(first, output(strategy, image).logits)
    strategy.eval()
    torch.testing.assert_close(output(strategy, image).logits, strategy.model(image).logits)
    with pytest.raises(ConfigError, match="has none"):
        tuned("stochnorm", classifier("test_vit"))


def test_average_warms_up_and_is_what_is_validated_and_kept() -> None:
    strategy = tuned("full", classifier(), ema=0.99)
    weight = strategy.model.head.weight
    start = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(1.0)
    strategy.end_step()  # the first update: decay (1 + 1) / (10 + 1)
    with strategy.on_source():
        expected = start * 2 / 11 + 9 / 11
        torch.testing.assert_close(strategy.model.head.weight.detach(), expected)
    torch.testing.assert_close(strategy.model.head.weight.detach(), torch.ones_like(start))
    strategy.finish({})
    torch.testing.assert_close(strategy.model.head.weight.detach(), expected)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_images_have_mixed_losses(options: dict[str, float]) -> None:
    strategy = tuned("full", classifier("test_vit"), **options)
    torch.manual_seed(5)
    image, order, share = strategy.strategy.mix(batch().image)
    assert 0 <= share <= 1
    torch.manual_seed(5)
    strategy.train()
    loss = strategy(batch(), None, progress=0.0)["source_loss"]
    logits = strategy.model(image).logits
    label = batch().label
    both = [nn.functional.cross_entropy(logits, y) for y in (label, label[order])]
    torch.testing.assert_close(loss, (share * both[0] + (1 - share) * both[1]).detach(), rtol=1e-4, atol=1e-4)


def test_common_hyper_parameters_are_those_of_all() -> None:
    for name in TRAINED:
        known = hyper_parameters(strategy_class(name))
        assert {"mixup", "cutmix", "ema", "dropout", "weight_decay"} <= set(known), name
    assert parse_strategy_hparams("last:2", ["mixup=0.2", "dropout=none"]) == {"mixup": 0.2, "dropout": None}
    with pytest.raises(ConfigError, match="says stages already"):
        parse_strategy_hparams("last:2", ["stages=3"])
    with pytest.raises(ConfigError, match="no hyper-parameter 'mixpu'"):
        parse_strategy_hparams("full", ["mixpu=1"])


def test_dropout_and_weight_decay_reach_what_they_name() -> None:
    strategy = tuned("full", classifier(), dropout=0.3, weight_decay=0.05)
    assert strategy.model.dropout.p == 0.3
    decays = {
        next(p.ndim > 1 for p in g["params"]): g.get("weight_decay") for g in strategy.param_groups(1e-3)
    }
    assert decays == {True: 0.05, False: 0.0}
    with pytest.raises(ConfigError, match="features"):
        tuned("probe", classifier(), cutmix=1.0)
