"""The parts of a model from its stem to its head, for strategies that treat them differently."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from medtl.errors import ConfigError
from medtl.models.encoder import Encoder
from medtl.models.parts import encoder_of
from medtl.models.segmenter import Segmenter


@dataclass
class Part:
    """A part of a model.

    Attributes:
        name: name shown to users.
        pretrained: whether it belongs to the encoder; the other parts are new.
        parameters: its parameters by their names in the model.
    """

    name: str
    pretrained: bool
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


def model_parts(model: nn.Module) -> tuple[list[Part], bool]:
    """The stages of the encoder, stem first, then every new part, named after its module.

    Your own network without an `encoder` counts as pretrained up to its `head`.

    Args:
        model: any model.

    Returns:
        The parts, and whether the model says which are pretrained. Without an encoder and a head, it is one part.
    """
    encoder, head = encoder_of(model), None
    if encoder is None:
        try:
            head = getattr(model, "head", None)
        except ConfigError:
            head = None
        if not isinstance(head, nn.Module):
            return [Part("network", True, dict(model.named_parameters()))], False
    inside = _stage_names(model, encoder) if encoder is not None else {}
    new = {id(p) for p in head.parameters()} if head is not None else set()
    parts: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        if encoder is None:
            pretrained, label = id(parameter) not in new, "head" if id(parameter) in new else "network"
        else:
            pretrained = id(parameter) in inside
            label = inside.get(id(parameter)) or name.removeprefix("body.").partition(".")[0]
        part = parts.setdefault(label, Part(label, pretrained))
        part.parameters[name] = parameter
    order = list(dict.fromkeys(inside.values()))
    return sorted(parts.values(), key=lambda p: order.index(p.name) if p.name in order else len(order)), True


def _stage_names(model: nn.Module, encoder: nn.Module) -> dict[int, str]:
    """The stage of every parameter of the encoder, by identity; a single stage if the model names none."""
    for owner in (encoder, model):
        if isinstance(owner, Encoder | Segmenter):
            break
    else:
        return {id(p): "encoder" for p in encoder.parameters()}
    names: dict[int, str] = {}
    for number, stage in enumerate(owner.parameter_stages()):
        label = f"encoder stage {number}" if number else "encoder stem"
        names |= {id(owner.get_parameter(name)): label for name in stage}
    return names
