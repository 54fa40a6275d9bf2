"""Full fine-tuning with a penalty on the distance from the pretrained weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from medtl.strategies.contract.strategy import Strategy


class L2SP(Strategy):
    """Trains all weights with an L2 penalty on their distance from the pretrained ones (Li et al. 2018, equation 3).

    The penalty is alpha / 2 ||w - w0||^2 over the encoder plus beta / 2 ||w||^2 over the head.

    Args:
        model: a `Classifier`, or any network with an `encoder` or a `head`.
        alpha: weight of the encoder's penalty.
        beta: weight of the head's penalty.
        common: see `Strategy`; `weight_decay`, which pulls towards zero instead, is 0 by default.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: float = 0.1,
        beta: float = 0.01,
        weight_decay: float | None = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(model, weight_decay=weight_decay, **common)
        self._check("alpha", alpha, alpha >= 0, "at least 0")
        self._check("beta", beta, beta >= 0, "at least 0")
        self.alpha, self.beta = alpha, beta
        self.must_know_parts()
        for place, (parameter, _) in enumerate(self._pulled()):
            self.register_buffer(f"begin_{place}", parameter.detach().clone())

    def _pulled(self) -> list[tuple[nn.Parameter, bool]]:
        return [(p, part.pretrained) for part in self.parts for p in part.parameters.values()]

    def penalties(self) -> dict[str, Tensor]:
        """The two terms."""
        start = self._pulled()[0][0].new_zeros(())
        near, small = start, start
        for place, (parameter, pretrained) in enumerate(self._pulled()):
            if pretrained:
                near = near + (parameter - self.get_buffer(f"begin_{place}")).square().sum()
            else:
                small = small + parameter.square().sum()
        return {"l2_sp": self.alpha / 2 * near, "l2_head": self.beta / 2 * small}
