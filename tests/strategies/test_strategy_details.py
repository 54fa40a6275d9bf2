"""Where naive fine-tuning goes wrong: statistics of frozen stages, averages, mixing, merging, other networks."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters import Adapter, Batch
from medtl.errors import ConfigError, DataError
from medtl.models import build_classifier, build_encoder, build_segmenter
from medtl.models.losses.classification import ClassificationLoss
from medtl.strategies import available
from medtl.strategies.contract.average import Average
from medtl.training.fit import FitConfig, fit
from tests.adapters.toys import network
from tests.strategies.test_strategies import TRAINED, Cases, batch, classifier, steps
from tests.strategies.tuning import output, tuned

REFUSED = {
    "own": {"last", "gradual", "layer_decay", "delta", "knn"},  # the stages, the encoder
    "segmenter": {"bss", "lp_ft", "probe", "knn"},
}
QUICK = {"batch_size": 8, "accelerator": "cpu", "tensorboard": False, "lr": 1e-3}


@pytest.mark.parametrize("name", ["head", "probe", "last:2", "lora"])
def test_fit_leaves_what_is_frozen_as_it_was(name: str, tmp_path: Path) -> None:
    """Validation puts the model into eval mode and back: neither statistics nor their counters may move."""
    strategy = tuned(name, classifier())
    frozen = [
        part
        for part in strategy.strategy.pretrained
        if not any(p.requires_grad for p in part.parameters.values())
    ]
    names = {n.rpartition(".")[0] for part in frozen for n in part.parameters}
    before = {k: v.clone() for k, v in strategy.model.state_dict().items() if k.rpartition(".")[0] in names}
    config = FitConfig(epochs=2, steps_per_epoch=2, **QUICK)
    fit(strategy, Cases(), folder=tmp_path / "model", config=config, validation=Cases(9))
    after = strategy.model.state_dict()
    assert any("num_batches_tracked" in key for key in before)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    weights = {k for k in changed if k.endswith("weight")}
    assert changed == (weights if name == "lora" else set())  # low-rank changes are added to the weights
    if name.startswith("last"):
        moved = "encoder.network.layer4.0.bn1.num_batches_tracked"
        assert after[moved] == 4


def test_gradual_trains_statistics_of_open_stages_alone() -> None:
    strategy = tuned("gradual", classifier(), until=0.5)
    strategy.train()
    early, late = (strategy.model.encoder.network.get_submodule(f"layer{k}.0.bn1") for k in (1, 4))
    counts = []
    for progress in (0.0, 0.1, 0.6):
        strategy(batch(), None, progress=progress)
        counts.append((int(early.num_batches_tracked), int(late.num_batches_tracked)))
    assert counts == [(0, 0), (0, 1), (1, 2)]


def test_gradual_gives_an_optimiser_all_parameters() -> None:
    """Processes that train together must know them all at the start, and a closed stage is not decayed."""
    strategy = tuned("gradual", classifier())
    assert all(p.requires_grad for p in strategy.model.parameters())
    stem = strategy.strategy.pretrained[0]
    before = {name: p.detach().clone() for name, p in stem.parameters.items()}
    strategy.train()
    optimizer = torch.optim.AdamW(strategy.param_groups(1e-2), weight_decay=0.5)
    strategy(batch(), None, progress=0.0)["loss"].backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in stem.parameters.items())


class TestAverage:
    def test_closed_form(self) -> None:
        value = {"a.b": torch.zeros(1), "count": torch.tensor(0)}
        average = Average(value, 0.5)
        expected = 0.0
        for step in range(1, 30):
            value["a.b"].fill_(float(step))
            value["count"].fill_(step)
            average.update(value)
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * step
        with average.swapped(value):
            assert value["a.b"].item() == pytest.approx(expected, rel=1e-5)
            assert value["count"].item() == 29
        assert value["a.b"].item() == 29

    def test_what_does_not_change_is_bit_equal(self) -> None:
        value = {"w": torch.rand(1000)}
        average = Average(value, 0.99)
        for _ in range(20):
            average.update(value)
        assert torch.equal(average.get_buffer("w"), value["w"])

    def test_statistics_are_averaged_and_lp_ft_starts_from_its_probe(self) -> None:
        strategy = tuned("lp_ft", classifier(), ema=0.9)
        strategy.begin({"source": [batch(num=12)]})
        head = strategy.model.head.weight.detach().clone()
        with strategy.on_source():
            assert torch.equal(strategy.model.head.weight, head)
        strategy = tuned("full", classifier(), ema=0.9)
        steps(strategy, 3)
        statistics = strategy.model.encoder.network.layer4[0].bn1.running_mean
        last = statistics.clone()
        with strategy.on_source():
            assert not torch.equal(statistics, last)


class TestMixing:
    def test_cutmix_pastes_one_box_and_counts_its_pixels(self) -> None:
        strategy = tuned("full", classifier("test_vit"), cutmix=1.0)
        image = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 20, 30)
        for seed in range(20):
            torch.manual_seed(seed)
            mixed, order, share = strategy.strategy.mix(image)
            own = (mixed == image).float().mean(dim=(1, 2, 3))
            moved = order != torch.arange(6)
            assert own[moved].tolist() == pytest.approx([share] * int(moved.sum()), abs=1e-6)

    def test_a_volume_is_cut_through_all_its_slices(self) -> None:
        strategy = tuned("full", classifier("test_vit"), cutmix=1.0)
        torch.manual_seed(1)
        mixed = strategy.strategy.mix(torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 5, 16, 16))[0]
        assert (mixed == mixed[:, :, :1]).all()

    @pytest.mark.parametrize("name", ["class_weights", "focal", "logit_adjusted"])
    def test_under_losses_for_rare_classes(self, name: str) -> None:
        """Mixed labels and smoothed labels are sums over classes of q_k times the loss of class k."""
        criterion = ClassificationLoss(name, (50, 30, 20))
        strategy = tuned("full", classifier("test_vit"), mixup=0.4, label_smoothing=0.1, criterion=criterion)
        strategy.train()
        torch.manual_seed(3)
        image, order, share = strategy.strategy.mix(batch().image)
        logits = strategy.model(image).logits
        label = batch().label
        hard = share * F.one_hot(label, 3) + (1 - share) * F.one_hot(label[order], 3)
        soft = 0.9 * hard + 0.1 / 3
        each = torch.stack(
            [torch.stack([criterion(row[None], torch.tensor([k])) for k in range(3)]) for row in logits]
        )
        torch.manual_seed(3)
        loss = strategy(batch(), None, progress=0.0)["source_loss"]
        torch.testing.assert_close(loss, (soft * each).sum(1).mean().detach(), rtol=1e-4, atol=1e-5)

    def test_not_in_validation(self) -> None:
        strategy = tuned("full", classifier("test_vit"), mixup=0.4).eval()
        first, second = (strategy(batch(), None, progress=0.0)["loss"].item() for _ in range(2))
        assert first == second

    def test_probe_mixes_features(self) -> None:
        strategy = tuned("probe", classifier(), mixup=0.4)
        strategy.train()
        features = Batch(image=torch.rand(6, strategy.model.encoder.num_features), label=batch().label)
        assert torch.isfinite(strategy(features, None, progress=0.0)["loss"])


def test_smoothing_without_a_criterion_is_torchs() -> None:
    logits, label = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, -1])
    plain = tuned("full", classifier("test_vit"), label_smoothing=0.2)
    expected = F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=0.2)
    torch.testing.assert_close(plain.supervised_loss(logits, label), expected)
    plain.criterion = ClassificationLoss("cross_entropy", (1, 1, 1))
    torch.testing.assert_close(plain.supervised_loss(logits, label), expected)


class TestLoRA:
    @pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext"])
    def test_convolutions_are_merged_exactly(self, encoder: str) -> None:
        model = classifier(encoder)
        strategy = tuned("lora", model, rank=2)
        steps(strategy)
        strategy.eval()
        learnt = output(strategy, batch().image).logits.detach()
        weights = [p.detach().clone() for p in model.encoder.parameters()]
        with strategy.on_source():
            torch.testing.assert_close(model(batch().image).logits.detach(), learnt)
        assert all(torch.equal(p, w) for p, w in zip(model.encoder.parameters(), weights, strict=True))
        strategy.finish({})
        torch.testing.assert_close(model(batch().image).logits.detach(), learnt)
        torch.testing.assert_close(output(strategy, batch().image).logits.detach(), learnt)

    def test_rank_and_scale(self) -> None:
        strategy = tuned("lora", classifier("test_vit"), rank=2, alpha=6.0)
        change = strategy.strategy.changes[0]
        with torch.no_grad():
            change.b.normal_()
        torch.testing.assert_close(change().flatten(1), 3.0 * change.b @ change.a)
        assert torch.linalg.matrix_rank(change().detach().flatten(1)) == 2


class TestStochNorm:
    def test_all_channels_by_moving_statistics_is_the_eval_pass(self) -> None:
        model = classifier()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean)
        strategy = tuned("stochnorm", model, p=1.0)
        with torch.no_grad():
            expected = output(strategy.eval(), batch().image).logits
            found = output(strategy.train(), batch().image).logits
        torch.testing.assert_close(found, expected)
        assert model.encoder.network.layer4[0].bn1.num_batches_tracked == 1

    def test_each_channel_is_one_of_the_two(self) -> None:
        """Also where timm's layer holds its activation."""
        model = classifier("test_efficientnet")
        strategy = tuned("stochnorm", model).train()
        layer = model.encoder.network.bn1
        seen: dict[str, Tensor] = {}
        layer.register_forward_pre_hook(lambda _, given: seen.update(image=given[0]))
        model.encoder.network.blocks.register_forward_pre_hook(lambda _, given: seen.update(made=given[0]))
        moving = layer.running_mean.clone(), layer.running_var.clone()
        output(strategy, batch().image)
        both = [
            layer.act(
                F.batch_norm(seen["image"], mean, var, layer.weight, layer.bias, mean is None, 0.0, layer.eps)
            )
            for mean, var in (moving, (None, None))
        ]
        is_one = [(seen["made"] - one).abs().amax((0, 2, 3)) < 1e-5 for one in both]
        assert (is_one[0] | is_one[1]).all()
        assert is_one[0].any()
        assert is_one[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_copy_learns_the_same(name: str) -> None:
    """A process that is spawned gets a copy, in which all objects are others."""
    strategy = tuned(name, classifier())
    steps(strategy, 1)
    others = (pickle.loads(pickle.dumps(strategy)), copy.deepcopy(strategy))
    assert all(other.strategy.plan(1e-3) == strategy.strategy.plan(1e-3) for other in others)
    steps(strategy, 2)
    for other in others:
        steps(other, 2)
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in strategy.state_dict().items())
    assert not torch.equal(strategy.model.head.weight, classifier().head.weight)


@pytest.mark.slow
def test_several_processes_open_the_stages_alike(tmp_path: Path) -> None:
    strategy = tuned("gradual", classifier("test_vit"), until=0.2)
    config = FitConfig(epochs=2, steps_per_epoch=4, devices=2, **{**QUICK, "batch_size": 4})
    before = strategy.model.encoder.network.patch_embed.proj.weight.detach().clone()
    fit(strategy, Cases(), folder=tmp_path / "model", config=config)
    assert not torch.equal(strategy.model.encoder.network.patch_embed.proj.weight, before)


@pytest.mark.parametrize("name", available())
class TestOtherNetworks:
    """A network of one's own, and one for masks: each strategy works or says why not."""

    def check(self, name: str, model: nn.Module, data: Batch) -> None:
        strategy: Adapter = tuned(name, model)
        strategy.train()
        loss = strategy(data, None, progress=0.0)["loss"]
        assert torch.isfinite(loss)
        loss.backward()

    def test_own(self, name: str) -> None:
        image = torch.rand(4, 1, 16, 16)
        data = Batch(image=image, label=torch.tensor([0, 1, 0, 1]))
        if name in REFUSED["own"]:
            with pytest.raises(ConfigError, match=r"are not known|no module of that name|of a Classifier"):
                tuned(name, network())
        else:
            self.check(name, network(), data)

    @pytest.mark.parametrize(
        "kind", ["unet", *(pytest.param(k, marks=pytest.mark.slow) for k in ("unet_2.5d", "unet_3d"))]
    )
    def test_segmenter(self, name: str, kind: str) -> None:
        model = build_segmenter("test_resnet", 2, network=kind, weights="random", in_channels=1)
        size = (2, 32, 32) if kind == "unet" else (2, 4, 32, 32)
        data = Batch(image=torch.rand(size).unsqueeze(1), label=(torch.rand(size) > 0.5).long())
        if name in REFUSED["segmenter"]:
            with pytest.raises(ConfigError, match=r"takes one vector|take head|linear head|one label"):
                tuned(name, model)
        else:
            self.check(name, model, data)


@pytest.mark.parametrize(
    "encoder",
    [
        "test_resnet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vgg11", "convnext_atto", "tf_efficientnet_lite0")
        ),
    ],
)
@pytest.mark.parametrize("kind", ["unet_2.5d", "unet_3d"])
def test_stages_of_a_segmentation_encoder_are_those_of_the_whole(encoder: str, kind: str) -> None:
    """The stages that a decoder reads hold the same weights, stage by stage, as those of the encoder alone."""
    model = build_segmenter(encoder, 2, network=kind, weights="random", in_channels=1)
    stages = model.parameter_stages()
    assert sorted(n for stage in stages for n in stage) == sorted(
        f"body.encoder.{n}" for n, _ in model.body.encoder.named_parameters()
    )
    whole = build_encoder(encoder, weights="random", in_channels=1)
    sizes = [[whole.get_parameter(n).shape for n in stage] for stage in whole.parameter_stages()]
    found = [[model.get_parameter(n).shape for n in stage] for stage in stages]
    assert found[1:-1] == sizes[1 : len(found) - 1]
    frozen = tuned("last:1", model).strategy.pretrained
    assert [all(p.requires_grad for p in part.parameters.values()) for part in frozen] == [
        *[False] * (len(stages) - 1),
        True,
    ]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("full", {"mixup": -1.0}, "mixup is -1"),
        ("full", {"ema": 1.0}, "ema is 1.0"),
        ("full", {"dropout": 1.0}, "dropout is 1.0"),
        ("probe", {"views": 0}, "views is 0"),
        ("gradual", {"until": 0.0}, "until is 0.0"),
        ("layer_decay", {"decay": 1.5}, "decay is 1.5"),
        ("bss", {"k": 0}, "k is 0"),
    ],
)
def test_wrong_values_are_named(name: str, options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tuned(name, classifier("test_vit" if name != "last" else "test_resnet"), **options)


def test_what_cannot_be_done_says_why() -> None:
    with pytest.raises(ConfigError, match="no layer of that name"):
        tuned("full", network(), dropout=0.1)
    with pytest.raises(ConfigError, match="are not known"):
        tuned("last:1", network())
    with pytest.raises(ConfigError, match="has neither"):
        tuned("head", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="not masks"):
        tuned("full", build_segmenter("test_resnet", 2, weights="random"), mixup=0.2)
    with pytest.raises(ConfigError, match="one vector of features"):
        tuned("bss", build_segmenter("test_resnet", 2, weights="random"))
    with pytest.raises(ConfigError, match="dense layer before the head"):
        tuned("lp_ft", build_classifier("test_resnet", 2, weights="random", bottleneck=8))
    strategy = tuned("lp_ft", classifier())
    with pytest.raises(DataError, match="one class alone"):
        strategy.begin({"source": [Batch(image=batch().image, label=torch.zeros(6).long())]})
