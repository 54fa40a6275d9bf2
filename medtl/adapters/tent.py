"""Test-time entropy minimisation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from medtl.adapters.contract.parts import entropy, norm_parameters
from medtl.adapters.contract.test_time import Reset, TestTimeAdapter
from medtl.errors import ConfigError


class Tent(TestTimeAdapter):
    """Entropy minimisation at test time (Wang et al. 2021): makes the model sure of the scans it is given.

    Only the scales and offsets of the normalisation layers learn (batch, instance, group and layer norm, 1-D to 3-D),
    from the mean entropy of the predictions, over cases or over voxels. It also makes a wrong model sure: compare the
    class shares that it predicts before and after. With BatchNorm see `medtl.adapters.contract.test_time`.

    Args:
        model: trained on the source.
        lr: of Adam.
        steps: updates a batch.
        reset: what a group is: the model goes back to its start for each `patient`, or for each `site`. With BatchNorm
            a group should have many images.
    """

    why_not: ClassVar[str] = "it minimises the entropy of one class a case or voxel"

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, steps: int = 1, reset: Reset = "site") -> None:
        found = norm_parameters(model)
        if not found:
            raise ConfigError(
                "Tent adapts the scales and offsets of normalisation layers, and the model has none (InstanceNorm has "
                "them with affine=True only), so it would change nothing. Choose another method or network."
            )
        super().__init__(model, found, lr=lr, steps=steps, reset=reset)

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Mean entropy in nats."""
        loss = entropy(self.model(image).logits)
        return {"loss": loss, "entropy": loss.detach()}
