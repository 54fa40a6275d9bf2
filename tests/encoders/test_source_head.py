"""The head that weights were trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medtl.encoders.source_head import source_head
from medtl.models import build_encoder
from medtl.models.weights.hub import packaged_available


class TestSourceHead:
    def test_is_found_in_a_file_behind_a_prefix(self, tmp_path: Path) -> None:
        encoder = build_encoder("test_resnet", weights="random")
        weight, bias = torch.randn(7, encoder.num_features), torch.randn(7)
        state = {f"model.{k}": v.contiguous() for k, v in encoder.network.state_dict().items()}
        save_file(state | {"model.fc.weight": weight, "model.fc.bias": bias}, tmp_path / "w.safetensors")
        head = source_head(encoder, str(tmp_path / "w.safetensors"))
        assert head is not None
        x = torch.randn(2, encoder.num_features)
        torch.testing.assert_close(head(x), x @ weight.T + bias)

    def test_is_none_where_there_is_none(self, tmp_path: Path) -> None:
        encoder = build_encoder("test_resnet", weights="random")
        save_file(
            {k: v.contiguous() for k, v in encoder.network.state_dict().items()}, tmp_path / "w.safetensors"
        )
        assert source_head(encoder, "random") is None
        assert source_head(encoder, str(tmp_path / "w.safetensors")) is None

    @pytest.mark.skipif(not packaged_available(), reason="the extra offline is not installed")
    def test_packaged_head_gives_the_networks_logits(self) -> None:
        import timm

        from medtl.encoders.source_head import _state

        name = "tf_efficientnet_lite0"
        encoder = build_encoder(name).eval()
        head = source_head(encoder, "imagenet")
        assert head is not None
        whole = timm.create_model(name).eval()
        whole.load_state_dict(_state(name, "imagenet"))
        image = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = whole((image - encoder.mean) / encoder.std)
            torch.testing.assert_close(head(encoder(image)), expected, rtol=1e-4, atol=1e-4)
