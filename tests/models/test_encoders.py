"""Encoders of every family through one call; state dicts of other libraries; wrong weights and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from medtl.errors import ConfigError, WeightsError
from medtl.models import build_classifier, build_encoder
from medtl.models.listing import list_encoders

FAMILIES = {
    "vgg11": 96,
    "resnet18": 96,
    "inception_v3": 96,
    "tf_efficientnet_lite0": 96,
    "convnext_atto": 96,
    "vit_tiny_patch16_224": 96,
    "swin_tiny_patch4_window7_224": 224,
    "densenet121": 64,
}


def images(channels: int, size: int, num: int = 2) -> torch.Tensor:
    """In double precision where networks are compared: random deep ones enlarge the rounding of float32."""
    return torch.rand(num, channels, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
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
def test_sum_rule_keeps_the_response_to_grey_images(tmp_path: Path) -> None:
    rgb = build_encoder("resnet18", weights="random").eval()
    torch.save(rgb.network.state_dict(), tmp_path / "w.pth")
    grey = images(1, 64)
    expected = rgb((grey - rgb.mean.mean()) / rgb.std.mean() * rgb.std + rgb.mean)
    for channels in (1, 2, 4):
        encoder = build_encoder("resnet18", weights=str(tmp_path / "w.pth"), in_channels=channels).eval()
        assert encoder.key_report.matched == len(rgb.network.state_dict())
        torch.testing.assert_close(encoder(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-4)
    kernel = rgb.network.conv1.weight
    for channels in (1, 2, 4):
        mean = build_encoder(
            "resnet18", weights=str(tmp_path / "w.pth"), in_channels=channels, channel_rule="mean"
        )
        torch.testing.assert_close(
            mean.network.conv1.weight, kernel.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        )
    with pytest.raises(ConfigError, match="sum, mean"):
        build_encoder("resnet18", weights="random", channel_rule="max")


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.backbone."])
def test_vgg16_of_torchvision(tmp_path: Path, prefix: str) -> None:
    theirs = torchvision.models.vgg16(weights=None, init_weights=False).eval()
    torch.save({"state_dict": {prefix + k: v for k, v in theirs.state_dict().items()}}, tmp_path / "w.pth")
    ours = build_encoder("vgg16", weights=str(tmp_path / "w.pth")).eval()
    assert ours.num_features == 512
    assert {k.removeprefix(prefix).partition(".")[0] for k in ours.key_report.ignored} == {"classifier"}
    image = images(3, 96)
    expected = theirs.features((image - ours.mean) / ours.std).mean((2, 3))
    torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
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


@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg16", "resnet50", "inception_v3"])
def test_state_dicts_of_timm(tmp_path: Path, name: str) -> None:
    theirs = timm.create_model(name).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = build_encoder(name, weights=str(tmp_path / "w.safetensors")).eval().double()
    theirs.double()
    image = images(3, 96, 1).double()
    maps = theirs.forward_features((image - ours.mean) / ours.std)
    torch.testing.assert_close(ours(image), maps.mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_radimagenet_and_torchxrayvision_names(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet50(weights=None)
    body = torch.nn.Sequential(*list(resnet.children())[:-1])
    torch.save({f"backbone.{k}": v for k, v in body.state_dict().items()}, tmp_path / "rad.pth")
    ours = build_encoder("resnet50", weights=str(tmp_path / "rad.pth"))
    assert torch.equal(ours.network.layer4[2].conv3.weight, resnet.layer4[2].conv3.weight)
    assert ours.key_report.ignored == ()
    assert "all 318 tensors" in ours.key_report.text()

    dense = timm.create_model("densenet121", in_chans=1, num_classes=18)
    state = {**dense.state_dict(), "op_threshs": torch.zeros(18)}
    torch.save(state, tmp_path / "xrv.pth")
    grey = build_encoder("densenet121", weights=str(tmp_path / "xrv.pth"), in_channels=1)
    assert torch.equal(grey.network.features.conv0.weight, dense.features.conv0.weight)
    assert "op_threshs" in grey.key_report.ignored


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
        ("inception_v3", 48, "too small for it.*Sizes that it takes: 75"),
        ("vit_tiny_patch16_224", 100, "no multiple of its patches.*112"),
    ],
)
def test_sizes_that_a_network_does_not_take(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, weights="random", image_size=size)


def test_list_says_parameters() -> None:
    rows = {r["encoder"]: r for r in list_encoders("vgg16")}
    assert rows["vgg16.tv_in1k"]["parameters (M)"] == "14.7"  # without the wide layers
    assert "parameters (M)" not in list_encoders("resnet")[0]
