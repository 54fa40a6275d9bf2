"""Every method with every strategy, by discovery: they train as the strategy says, or are refused with a reason."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from medtl.adapters import Adapter, Batch, adapter_class, available, build_adapter
from medtl.adapters.dann import DANN
from medtl.errors import ConfigError
from medtl.models import Classifier, build_classifier, build_segmenter
from medtl.strategies import available as strategies
from medtl.strategies import strategy_class
from medtl.strategies.lora import LoRA
from tests.adapters.training import build, call
from tests.strategies.test_strategies import batch, classifier

PAIRS = [(m, s) for m in available() for s in strategies()]


def target(num: int = 6) -> Batch:
    image = batch(num=num).image.flip(0) * 0.6
    return Batch(
        image=image, strong=image * 0.9, index=torch.arange(num), site=torch.zeros(num, dtype=torch.long)
    )


def model_for(method: str) -> nn.Module:
    """Without attention, so that nothing but the head lies above the encoder."""
    if "binary" in adapter_class(method).tasks:
        return classifier(pooling="mean")
    return build_segmenter("test_resnet", 3, weights="random")


def expected_refusal(method: str, strategy: str) -> str:
    """Part of the reason why a pair does not go together; "" if it does."""
    kind, learns = adapter_class(method), strategy_class(strategy)
    masks = "binary" not in kind.tasks
    if masks and "segmentation" not in learns.tasks:
        return "does not support the task"
    if masks and strategy in ("lp_ft", "knn"):
        return "linear head|Leave --head"
    if not kind.phases:
        return "" if strategy == "full" else "trains nothing"
    if learns.alone and not kind.on_features:
        return "does not go with"
    if learns.sets_head and kind.starts_from == "source_only":
        return "trained model"
    if learns.head_first and kind.starts_from == "source_only":
        return "begins with the head"
    if kind.aligns and strategy == "head":
        return "nothing below the head learns"
    return ""


QUICK = ("dann", "full", "lora", "layer_decay")
"""With one of these as its half, a pair is tried in every run of the tests; the others in the long one."""


@pytest.mark.parametrize(
    ("method", "strategy"),
    [pytest.param(*pair, marks=() if {*pair} & {*QUICK} else pytest.mark.slow) for pair in PAIRS],
)
def test_each_pair_trains_or_says_why_not(method: str, strategy: str) -> None:
    if reason := expected_refusal(method, strategy):
        with pytest.raises(ConfigError, match=reason):
            build(method, model_for(method), strategy=strategy)
        return
    adapter = build(method, model_for(method), strategy=strategy)
    if not adapter.trains:
        return
    source = batch()
    if adapter.model.task == "segmentation":
        source = Batch(image=source.image, label=(source.image.mean(1) > 0.5).long())
    start = {k: p.detach().clone() for k, p in adapter.model.named_parameters()}
    learning = {id(p) for p in adapter.strategy.learning()}
    adapter.begin({"source": [source], "target": [target()]})
    adapter.train()
    adapter.on_epoch_start({"target": [target()]})
    optimizer = torch.optim.AdamW(adapter.param_groups(1e-2), weight_decay=1e-2)
    for step in range(3):
        losses = call(adapter, source, target(), progress=step / 3)
        assert torch.isfinite(losses["loss"])
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        adapter.end_step()
    set_anew = set() if not adapter.strategy.sets_head else {"head.weight", "head.bias"}
    frozen = [k for k, p in adapter.model.named_parameters() if id(p) not in learning and k not in set_anew]
    named = dict(adapter.model.named_parameters())
    assert all(torch.equal(named[k], start[k]) for k in frozen)
    adapter.finish({"target": [target()]})
    plain = copy.deepcopy(adapter.predictor).eval()
    assert set(plain.state_dict()) == set(model_for(method).state_dict())
    assert torch.isfinite(plain(target().image).logits).all()


@pytest.mark.parametrize("strategy", ["full", "layer_decay", "lora", "last:1", "gradual"])
def test_dann_moves_what_learns_against_the_discriminator(strategy: str) -> None:
    """The reversed gradient reaches what the strategy trains, with the opposite sign of the discriminator's loss."""
    adapter = build_adapter("dann", classifier(pooling="mean"), strategy=strategy).train()
    source = batch()
    if strategy == "gradual":
        adapter.strategy.on_progress(1.0)
    if strategy == "lora":  # B starts at zero, and with it the gradient of A
        for change in adapter.strategy.changes:
            nn.init.normal_(change.b, std=0.01)
    found = []
    for weight in (0.0, 1.0):
        adapter.weight = weight
        adapter.zero_grad()
        torch.manual_seed(1)
        adapter(source, target(), progress=1.0)["loss"].backward()
        below = [p for p in adapter.strategy.learning() if p.grad is not None]
        found.append([p.grad.clone() for p in below])
    assert any(not torch.allclose(a, b) for a, b in zip(*found, strict=True))


def test_a_strategy_of_another_model_or_time_is_refused() -> None:
    model = classifier()
    with pytest.raises(ConfigError, match="made for another model"):
        DANN(classifier(), strategy=LoRA(model))
    adapter = DANN(model, strategy=LoRA(model, rank=2))
    assert isinstance(adapter.strategy, LoRA)
    model.head = nn.Linear(model.num_features, 3)
    with pytest.raises(ConfigError, match="has changed the model"):
        adapter.hold(adapter.strategy)


def test_options_that_would_be_lost_are_refused() -> None:
    with pytest.raises(ConfigError, match="labelled cases of the source"):
        build_adapter("shot", classifier(), strategy_hparams={"mixup": 0.2})
    with pytest.raises(ConfigError, match="would be thrown away"):
        build_adapter("mean_teacher", classifier(), strategy_hparams={"ema": 0.9})
    with pytest.raises(ConfigError, match="eval mode"):
        build_adapter("dann", classifier(), strategy="stochnorm", norm="frozen")
    build_adapter("mean_teacher", classifier(), strategy_hparams={"ema": 0.9}, predict_with="student")


def test_norms_and_biases_are_never_decayed() -> None:
    adapter = build_adapter("dann", classifier())
    for group in adapter.param_groups(1e-3):
        assert all(p.ndim < 2 for p in group["params"]) == (group.get("weight_decay") == 0.0)


def test_a_teacher_learns_low_rank_updates_too() -> None:
    adapter = build_adapter("mean_teacher", classifier(), strategy="lora", threshold=0.0)
    before = copy.deepcopy(adapter.teacher.state_dict())
    adapter.train()
    for change in adapter.strategy.changes:
        nn.init.normal_(change.b, std=0.1)
    adapter.end_step()
    adapter.end_step()
    layer = next(n for n, m in adapter.teacher.named_modules() if isinstance(m, nn.Conv2d) and "layer4" in n)
    assert not torch.equal(adapter.teacher.get_submodule(layer).weight, before[f"{layer}.weight"])


class Swapped(Adapter):
    """Replaces the head by two layers."""

    def __init__(self, model: Classifier) -> None:
        model.head = nn.Sequential(
            nn.Linear(model.num_features, 5), nn.ReLU(), nn.Linear(5, model.num_classes)
        )
        super().__init__(model)


def test_a_changed_head_is_described_and_comes_back(tmp_path: Path) -> None:
    from medtl.checkpoints import save_weights
    from medtl.data.tensors.spec import Preprocess
    from medtl.prediction.trained import load_trained, model_header

    adapter = Swapped(classifier())
    header = model_header(adapter, ["a", "b", "c"], Preprocess(image_size=32, channels=3))
    save_weights(tmp_path / "model.safetensors", adapter.predictor.state_dict(), header)
    again = load_trained(tmp_path / "model.safetensors")
    image = batch().image
    torch.testing.assert_close(again.model(image).logits, adapter.model.eval()(image).logits)
    assert build_classifier("test_resnet", 3, weights="random").spec().get("head", "none") == "none"
