"""torchvision's layer names for networks that timm names differently: EfficientNet, ConvNeXt, ViT and Swin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from medtl.errors import WeightsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Input statistics of all torchvision ImageNet weights (https://docs.pytorch.org/vision/stable/models.html)."""

# Pairs of a pattern for torchvision's name and its replacement in timm's; the first pattern that matches is used.
_Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _stage(name: str, divide: int = 2, add: int = 0) -> Callable[[re.Match[str]], str]:
    """Torchvision numbers stages, and the layers between them, consecutively."""
    return lambda found: name.format(int(found[1]) // divide + add, *found.groups()[1:])


_EFFICIENTNET: _Rules = (
    (r"features\.0\.0\.", "conv_stem."),
    (r"features\.0\.1\.", "bn1."),
    (r"features\.8\.0\.", "conv_head."),
    (r"features\.8\.1\.", "bn2."),
    (r"features\.1\.(\d+)\.block\.0\.0\.", r"blocks.0.\1.conv_dw."),
    (r"features\.1\.(\d+)\.block\.0\.1\.", r"blocks.0.\1.bn1."),
    (r"features\.1\.(\d+)\.block\.1\.fc1\.", r"blocks.0.\1.se.conv_reduce."),
    (r"features\.1\.(\d+)\.block\.1\.fc2\.", r"blocks.0.\1.se.conv_expand."),
    (r"features\.1\.(\d+)\.block\.2\.0\.", r"blocks.0.\1.conv_pw."),
    (r"features\.1\.(\d+)\.block\.2\.1\.", r"blocks.0.\1.bn2."),
    (r"features\.(\d+)\.(\d+)\.block\.0\.0\.", _stage("blocks.{}.{}.conv_pw.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.0\.1\.", _stage("blocks.{}.{}.bn1.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.1\.0\.", _stage("blocks.{}.{}.conv_dw.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.1\.1\.", _stage("blocks.{}.{}.bn2.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.2\.fc1\.", _stage("blocks.{}.{}.se.conv_reduce.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.2\.fc2\.", _stage("blocks.{}.{}.se.conv_expand.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.3\.0\.", _stage("blocks.{}.{}.conv_pwl.", 1, -1)),
    (r"features\.(\d+)\.(\d+)\.block\.3\.1\.", _stage("blocks.{}.{}.bn3.", 1, -1)),
    (r"classifier\.1\.", "classifier."),
)
_CONVNEXT: _Rules = (
    (r"features\.0\.", "stem."),
    (r"features\.([246])\.(\d)\.", _stage("stages.{}.downsample.{}.")),
    (r"features\.(\d)\.(\d+)\.layer_scale", _stage("stages.{}.blocks.{}.gamma")),
    (r"features\.(\d)\.(\d+)\.block\.0\.", _stage("stages.{}.blocks.{}.conv_dw.")),
    (r"features\.(\d)\.(\d+)\.block\.2\.", _stage("stages.{}.blocks.{}.norm.")),
    (r"features\.(\d)\.(\d+)\.block\.3\.", _stage("stages.{}.blocks.{}.mlp.fc1.")),
    (r"features\.(\d)\.(\d+)\.block\.5\.", _stage("stages.{}.blocks.{}.mlp.fc2.")),
    (r"classifier\.0\.", "head.norm."),
    (r"classifier\.2\.", "head.fc."),
)
_SWIN: _Rules = (
    (r"features\.0\.0\.", "patch_embed.proj."),
    (r"features\.0\.2\.", "patch_embed.norm."),
    (r"features\.([246])\.", _stage("layers.{}.downsample.")),
    (r"features\.(\d)\.(\d+)\.mlp\.0\.", _stage("layers.{}.blocks.{}.mlp.fc1.")),
    (r"features\.(\d)\.(\d+)\.mlp\.3\.", _stage("layers.{}.blocks.{}.mlp.fc2.")),
    (r"features\.(\d)\.(\d+)\.", _stage("layers.{}.blocks.{}.")),
    (r"head\.", "head.fc."),
)
_VIT: _Rules = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"heads\.head\.", "head."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
)
_FAMILIES: tuple[tuple[str, str, _Rules], ...] = (
    ("features.1.0.block.1.fc1.weight", "features.0.0.weight", _EFFICIENTNET),
    ("features.1.0.layer_scale", "features.0.0.weight", _CONVNEXT),
    ("features.1.0.attn.relative_position_bias_table", "features.0.0.weight", _SWIN),
    ("encoder.layers.encoder_layer_0.ln_1.weight", "class_token", _VIT),
)
"""For each family: a tensor that no other family has, a second tensor, and the renaming rules."""


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Renames tensors to timm's names and drops a wrapper's prefix; None if no family matches.

    torchvision's blocks compute the same in the same order. Layer scales (ConvNeXt) lose their axes of length 1.
    """
    for mark, other, rules in _FAMILIES:
        for prefix in (key.removesuffix(mark) for key in state if key.endswith(mark)):
            if prefix + other in state:
                return {
                    _renamed(key.removeprefix(prefix), rules): value.flatten()
                    if key.endswith("layer_scale")
                    else value
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
    return None


def check_torchvision(name: str, state: Mapping[str, Tensor], origin: str) -> None:
    """Refuses timm EfficientNets that have torchvision's shapes but compute something else.

    Those named `tf_` pad differently; from B5 on, torchvision's BatchNorm has an epsilon of 1e-3 (its
    `models/efficientnet.py`), and timm's has 1e-5.

    Args:
        name: timm's name of the encoder.
        state: as returned by `torchvision_names`.
        origin: where the weights come from, for the message.

    Raises:
        WeightsError: the encoder is one of these.
    """
    if "conv_stem.weight" not in state:
        return
    if name.startswith("tf_"):
        raise WeightsError(
            f"The weights in {origin} are torchvision's, whose EfficientNets pad differently from {name}. Take "
            f"--encoder {name.removeprefix('tf_').partition('.')[0]}."
        )
    if "conv_head.weight" in state and len(state["conv_head.weight"]) > 1792:
        raise WeightsError(
            f"The weights in {origin} are torchvision's EfficientNet of B5 or larger, and no timm encoder computes the "
            "same (its BatchNorm has another epsilon). Use B0 to B4, or weights that timm publishes."
        )


def _renamed(key: str, rules: _Rules) -> str:
    for pattern, name in rules:
        renamed, times = re.subn(f"^{pattern}", name, key)
        if times:
            return renamed
    return key
