"""Test-time entropy minimisation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from medtl.adapters.contract.parts import entropy, norm_parameters
from medtl.adapters.contract.test_time import Reset, TestTimeAdapter
from medtl.errors import ConfigError


class Tent(TestTimeAdapter):
    """Minimises the entropy of its predictions at test time, through the normalisation layers (Wang et al. 2021).

    Only the scales and offsets of the normalisation layers learn (batch, instance, group and layer norm, 1D to 3D),
    from the mean entropy over cases or voxels. The method also makes a wrong model confident: compare the predicted
    class shares before and after. For BatchNorm see `medtl.adapters.contract.test_time`.

    Args:
        model: trained on the source.
        lr: learning rate of Adam.
        steps: updates per batch.
        reset: the model returns to its start for each `patient` or for each `site`. With BatchNorm, a group should
            have many images.
    """

    why_not: ClassVar[str] = "it minimises the entropy of one class distribution per case or voxel"

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, steps: int = 1, reset: Reset = "site") -> None:
        found = norm_parameters(model)
        if not found:
            raise ConfigError(
                "Tent adapts the scales and offsets of normalisation layers, and the model has none (InstanceNorm has "
                "them only with affine=True), so it would change nothing. Choose another method or network."
            )
        super().__init__(model, found, lr=lr, steps=steps, reset=reset)

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Computes the mean entropy, in nats."""
        loss = entropy(self.model(image).logits)
        return {"loss": loss, "entropy": loss.detach()}
