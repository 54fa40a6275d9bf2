"""Encoders of every family through one call; state dicts of other libraries; wrong weights and sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from medtl.encoders.source_head import source_head
from medtl.errors import ConfigError, WeightsError
from medtl.models import build_classifier, build_encoder, build_segmenter
from medtl.models.weights.hub import packaged_available, weights_here
from medtl.models.weights.listing import list_encoders
from medtl.models.weights.load import load_pretrained_maps

FAMILIES = {
    "vgg11": 96,
    "resnet18": 96,
    "inception_v3": 96,
    "tf_efficientnet_lite0": 96,
    "convnext_atto": 96,
    "vit_tiny_patch16_224": 96,
    "swin_tiny_patch4_window7_224": 96,
    "densenet121": 64,
}


def _slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def images(channels: int, size: int, num: int = 2) -> torch.Tensor:
    """In double precision where networks are compared: random deep ones enlarge the rounding of float32."""
    return torch.rand(num, channels, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*family, marks=pytest.mark.slow if family[0][:5] in ("incep", "swin_", "dense") else ())
        for family in FAMILIES.items()
    ],
)
def test_every_family_through_one_call(name: str, size: int) -> None:
    encoder = build_encoder(name, weights="random", image_size=size).eval()
    features = encoder(images(3, size))
    assert features.shape == (2, encoder.num_features)
    depths = encoder.features_at(images(3, size))
    assert 4 <= len(depths) <= 6
    torch.testing.assert_close(list(depths.values())[-1], features)
    assert all(f.ndim == 2 and len(f) == 2 for f in depths.values())
    stages = encoder.parameter_stages()
    assert sorted(n for stage in stages for n in stage) == sorted(n for n, _ in encoder.named_parameters())
    assert len(stages) >= 5
    first = encoder.network.pretrained_cfg["first_conv"]
    assert f"network.{first}.weight" in stages[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_channel_rules(tmp_path: Path, name: str) -> None:
    """`sum`: equal channels give what the grey image gives in RGB, behind the same normalisation of each channel."""
    rgb = build_encoder(name, weights="random", image_size=64).eval()
    torch.nn.init.normal_(rgb.network.get_submodule(first := rgb.network.pretrained_cfg["first_conv"]).weight)
    torch.save(rgb.network.state_dict(), tmp_path / "w.pth")
    kernel = rgb.network.get_submodule(first).weight
    grey = images(1, 64)
    expected = rgb((grey - rgb.mean.mean()) / rgb.std.mean() * rgb.std + rgb.mean)
    for channels in (1, 2, 4):
        made = {
            rule: build_encoder(
                name,
                weights=str(tmp_path / "w.pth"),
                in_channels=channels,
                channel_rule=rule,
                image_size=64,
            ).eval()
            for rule in ("sum", "mean")
        }
        assert made["sum"].key_report.matched == len(rgb.network.state_dict())
        alike = made["sum"](grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(alike, expected, rtol=1e-3, atol=1e-3)
        if channels > 1:  # channels are told apart
            swapped = torch.cat([1 - grey, grey.expand(-1, channels - 1, -1, -1)], dim=1)
            assert (made["sum"](swapped) - made["sum"](swapped.roll(1, 1))).abs().max() > 1e-3
        torch.testing.assert_close(
            made["mean"].network.get_submodule(first).weight,
            kernel.mean(1, keepdim=True).expand(-1, channels, -1, -1),
        )


def test_unknown_channel_rule() -> None:
    with pytest.raises(ConfigError, match="sum, mean"):
        build_encoder("resnet18", weights="random", channel_rule="max")


def vgg_of_torchvision(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Random features and the state dict; of the wide layers, 120 million numbers that no encoder has, the names."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, init_weights=False)
    features = network.features.to_empty(device="cpu").eval()
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    state = network.state_dict()
    return features, {k: torch.zeros(1) if v.is_meta else v for k, v in state.items()}


@torch.no_grad()
def test_vgg16_of_torchvision(tmp_path: Path) -> None:
    prefix = "module.encoder.backbone."
    features, state = vgg_of_torchvision("vgg16")
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "w.pth")
    ours = build_encoder("vgg16", weights=str(tmp_path / "w.pth")).eval()
    assert ours.num_features == 512
    assert {k.removeprefix(prefix).partition(".")[0] for k in ours.key_report.ignored} == {"classifier"}
    image = images(3, 96)
    expected = features((image - ours.mean) / ours.std).mean((2, 3))
    torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.slow
def test_resnet50_and_inception_of_torchvision(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet50(weights=None).eval()
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    ours = build_encoder("resnet50", weights=str(tmp_path / "r.pth")).eval().double()
    resnet.fc = torch.nn.Identity()
    resnet.double()
    image = images(3, 96).double()
    torch.testing.assert_close(ours(image), resnet((image - ours.mean) / ours.std), rtol=1e-5, atol=1e-5)

    # With its published weights torchvision takes images normalised as for ResNet, and turns them to (x - .5) / .5.
    inception = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    torch.save(inception.state_dict(), tmp_path / "i.pth")
    ours_i = build_encoder("inception_v3", weights=str(tmp_path / "i.pth")).eval().double()
    inception.fc = torch.nn.Identity()
    inception.double()
    expected = inception((image - ours.mean) / ours.std)
    torch.testing.assert_close(ours_i(image), expected, rtol=1e-5, atol=1e-5)
    assert any(k.startswith("AuxLogits") for k in ours_i.key_report.ignored)


TORCHVISION = {
    "efficientnet_b0": ("efficientnet_b0", 64),
    "efficientnet_b1": ("efficientnet_b1", 64),
    "convnext_tiny": ("convnext_tiny", 64),
    "vit_b_32": ("vit_base_patch32_224", 224),
    "swin_t": ("swin_tiny_patch4_window7_224", 224),
}


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("theirs", TORCHVISION)
def test_other_names_of_torchvision(tmp_path: Path, theirs: str) -> None:
    """Every parameter is drawn anew: scales that begin at 1e-6 would hide what stands behind them."""
    name, size = TORCHVISION[theirs]
    network = torchvision.models.get_model(theirs, weights=None).eval()
    torch.manual_seed(0)
    for key, tensor in network.state_dict().items():
        if tensor.ndim < 2 and tensor.is_floating_point():
            positive = key.endswith(("weight", "running_var"))
            tensor.copy_(torch.rand_like(tensor) + 0.5 if positive else torch.randn_like(tensor) / 10)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
    image = images(3, size).double() * torch.tensor([1, 0.1]).view(2, 1, 1, 1)
    if theirs.startswith("efficientnet"):  # its signal dies out unless the statistics fit
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        network.train()(image.float().repeat(8, 1, 1, 1))
        network.eval()
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "w.pth")
    ours = build_encoder(name, weights=str(tmp_path / "w.pth"), image_size=size).eval().double()
    assert ours.key_report.statistics == "torchvision"
    torch.testing.assert_close(ours.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]).double())
    head = "heads" if theirs.startswith("vit") else "head" if theirs.startswith("swin") else "classifier"
    if theirs.startswith("convnext"):
        network.classifier[2] = torch.nn.Identity()
    else:
        setattr(network, head, torch.nn.Identity())
    expected = network.double()((image - ours.mean) / ours.std)
    assert expected.std(0).mean() > 1e-3  # the two images differ
    assert source_head(ours, str(tmp_path / "w.pth")) is not None  # LEEP asks for it
    torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-5)


def test_efficientnets_that_only_look_like_torchvisions(tmp_path: Path) -> None:
    network = torchvision.models.efficientnet_b0(weights=None)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="Take --encoder efficientnet_b0"):
        build_encoder("tf_efficientnet_b0.in1k", weights=str(tmp_path / "w.pth"))
    with torch.device("meta"):
        shapes = torchvision.models.efficientnet_b5(weights=None).state_dict()
    save_file({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in shapes.items()}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="B5 or larger"):
        build_encoder("efficientnet_b5", weights=str(tmp_path / "w.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg16", *_slow("resnet50", "inception_v3")])
def test_state_dicts_of_timm(tmp_path: Path, name: str) -> None:
    narrow = {"mlp_ratio": 1 / 4096} if name == "vgg16" else {}  # its wide layers are not compared
    theirs = timm.create_model(name, **narrow).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = build_encoder(name, weights=str(tmp_path / "w.safetensors")).eval().double()
    theirs.double()
    image = images(3, 96, 1).double()
    maps = theirs.forward_features((image - ours.mean) / ours.std)
    torch.testing.assert_close(ours(image), maps.mean((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["densenet121", *_slow("resnet50", "inception_v3")])
def test_radimagenet_files(tmp_path: Path, name: str) -> None:
    """`nn.Sequential(*children)` of torchvision's network, which takes images in [-1, 1]."""
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    theirs = getattr(torchvision.models, name)(weights=None, **options)
    body = torch.nn.Sequential(*list(theirs.children())[:-1])
    torch.save({f"backbone.{k}": v for k, v in body.state_dict().items()}, tmp_path / "rad.pth")
    ours = build_encoder(name, weights=str(tmp_path / "rad.pth"))
    expected = theirs.state_dict()
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, expected[key])
    assert ours.key_report.ignored == ()
    assert (float(ours.mean.unique()), float(ours.std.unique())) == (0.5, 0.5)
    size = len(ours.network.state_dict())
    assert ours.key_report.text() == (
        f"file rad.pth: all {size} tensors of the encoder matched. Inputs are normalised as for RadImageNet."
    )


def test_a_segmentation_network_normalises_as_its_weights_expect(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None)
    body = torch.nn.Sequential(*list(theirs.children())[:-1])
    torch.save({f"backbone.{k}": v for k, v in body.state_dict().items()}, tmp_path / "rad.pth")
    model = build_segmenter("resnet18", 2, weights=str(tmp_path / "rad.pth"), in_channels=1)
    assert (float(model.mean), float(model.std)) == (0.5, 0.5)
    again = build_segmenter("resnet18", 2, weights=None, in_channels=1)
    assert float(again.mean) != 0.5
    again.load_state_dict(model.state_dict())
    assert float(again.mean) == 0.5


@torch.no_grad()
@pytest.mark.parametrize("old_names", [False, True])
def test_torchxrayvision_files(tmp_path: Path, old_names: bool) -> None:
    """A grey DenseNet whose images are in [-1024, 1024]; torchvision's first files call `norm1` `norm.1`."""
    theirs = torchvision.models.densenet121(weights=None, num_classes=18).eval()
    theirs.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    state = theirs.state_dict() | {"op_threshs": torch.zeros(18)}
    if old_names:
        state = {re.sub(r"(r\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in state.items()}
        assert any("norm.1" in k for k in state)
    torch.save(state, tmp_path / "xrv.pth")
    grey = build_encoder("densenet121", weights=str(tmp_path / "xrv.pth"), in_channels=1).eval()
    image = images(1, 64)
    expected = theirs.features((2 * image - 1) * 1024).relu().mean((2, 3))
    torch.testing.assert_close(grey(image), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert set(grey.key_report.ignored) == {"classifier.weight", "classifier.bias", "op_threshs"}
    colour = build_encoder("densenet121", weights=str(tmp_path / "xrv.pth")).eval()
    torch.testing.assert_close(colour(image.expand(-1, 3, -1, -1)), grey(image), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_checkpoint_of_medtl_brings_its_statistics(tmp_path: Path) -> None:
    model = build_classifier("resnet18", 2, weights="random", in_channels=1).eval()
    model.encoder.mean.fill_(0.1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "run.safetensors")
    again = build_encoder("resnet18", weights=str(tmp_path / "run.safetensors"), in_channels=1).eval()
    assert torch.equal(again(images(1, 64)), model.encoder(images(1, 64)))
    assert "head.weight" not in again.network.state_dict()


@torch.no_grad()
def test_vgg_features_without_its_head_are_enough(tmp_path: Path) -> None:
    """Also for a segmentation network, whose encoder is timm's features-only variant."""
    features, _ = vgg_of_torchvision("vgg11")
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, tmp_path / "w.pth")
    assert build_encoder("vgg11", weights=str(tmp_path / "w.pth")).key_report.ignored == ()
    maps = timm.create_model("vgg11", features_only=True, mlp_ratio=1 / 4096)
    load_pretrained_maps(maps, "vgg11", str(tmp_path / "w.pth"), 3)
    assert torch.equal(maps.state_dict()["features_0.weight"], features[0].weight)


def test_stages_of_vgg_and_trailing_norms() -> None:
    """VGG's stages are its blocks of 2, 2, 3, 3 and 3 convolutions (Simonyan & Zisserman 2015, configuration D)."""
    stages = build_encoder("vgg16", weights="random").parameter_stages()
    assert [len(s) // 2 for s in stages] == [2, 2, 3, 3, 3]
    stages = build_encoder("convnext_atto", weights="random").parameter_stages()
    assert len(stages) == 5
    assert {"network.head.norm.weight", "network.stages.3.downsample.1.weight"} <= set(stages[-1])


def test_weights_of_another_architecture_say_how_many_match(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not those of encoder resnet18: of its 120 tensors \d+ match"):
        build_encoder("resnet18", weights=_without_first_layer(tmp_path))
    with pytest.raises(WeightsError, match="not those of encoder vgg11"):
        build_encoder("vgg11", weights=str(tmp_path / "w.pth"))


def _without_first_layer(folder: Path) -> str:
    state = timm.create_model("resnet18").state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("layer1")}, folder / "part.pth")
    return str(folder / "part.pth")


@torch.no_grad()
def test_embeddings_of_positions_are_resampled(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.pth")
    encoder = build_encoder("vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"), image_size=96).eval()
    assert encoder.network.pos_embed.shape == (1, 37, 192)
    assert encoder(images(3, 96)).shape == (2, 192)
    model = build_classifier("vit_tiny_patch16_224", 2, weights=str(tmp_path / "w.pth"), image_size=96)
    again = build_classifier(**model.spec(), weights=None)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg16", 31, "a side of 32 or more"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("inception_v3", 48, "a side of 75 or more"),
                ("swin_tiny_patch4_window7_224", 90, "multiples of 4, as 88 and 92"),
            )
        ),
        ("vit_tiny_patch16_224", 100, "multiples of 16, as 96 and 112"),
    ],
)
def test_sizes_that_a_network_does_not_take(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, weights="random", image_size=size)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 48, "a side of 75 or more"),
        ("swin_tiny_patch4_window7_224", 96, "built for images of 224 x 224.*--image-size"),
    ],
)
@pytest.mark.slow
def test_images_of_a_size_that_was_not_announced(name: str, size: int, message: str) -> None:
    encoder = build_encoder(name, weights="random").eval()
    for call in (encoder, encoder.features_at):
        with pytest.raises(ConfigError, match=message):
            call(images(3, size))


def test_list_says_parameters() -> None:
    rows = {r["encoder"]: r for r in list_encoders("vgg16")}
    assert rows["vgg16.tv_in1k"]["parameters (M)"] == "14.7"  # without the wide layers
    assert "parameters (M)" not in list_encoders("resnet")[0]


def test_weights_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the hub's cache, as its client lays it out: folders by repository, snapshots by commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights_here("tf_efficientnet_lite0") == packaged_available()
    assert not weights_here("resnet18")
    assert not weights_here("test_resnet_of_mine")
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    theirs = timm.create_model("resnet18").eval()
    save_file(theirs.state_dict(), snapshot / "model.safetensors")
    assert weights_here("resnet18")
    assert not weights_here("resnet34")
    assert {row["encoder"]: row["weights"] for row in list_encoders("resnet18.a1*")} == {
        "resnet18.a1_in1k": "here"
    }
    ours = build_encoder("resnet18").eval()
    assert ours.weights.startswith("imagenet")
    head = source_head(ours, "imagenet")  # of the 1000 classes
    assert head is not None
    with torch.no_grad():
        image = images(3, 64)
        torch.testing.assert_close(
            head(ours(image)), theirs((image - ours.mean) / ours.std), rtol=1e-4, atol=1e-5
        )
